"""Bytes and peers: wire formats, identity, control plane and data plane. Knows nothing of what a job means."""
