"""Model packages of our own, each beside its training script and model card."""
