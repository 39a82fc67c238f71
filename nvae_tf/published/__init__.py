"""The published PyTorch files, both ways."""
