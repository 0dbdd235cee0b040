"""HTTP of the daemon: metrics and health on one port, the Open Inference Protocol on another."""
