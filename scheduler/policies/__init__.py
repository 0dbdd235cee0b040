"""Placement policies, one per module, found by name through scheduler.policy."""
