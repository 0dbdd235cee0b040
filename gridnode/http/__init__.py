"""HTTP of the daemon: metrics now."""
