"""Commands of the gridnode program, one module per group."""
