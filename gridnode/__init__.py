"""A decentralised compute grid for AI inference at the edge."""

__version__ = "0.1.0"
