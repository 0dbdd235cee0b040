"""Signed model packages: manifest, trust, storage, distribution and execution."""
