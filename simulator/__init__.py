"""A discrete-event simulator that drives the scheduling core of the daemon."""
