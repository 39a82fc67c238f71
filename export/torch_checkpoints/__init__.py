"""Published PyTorch files into run folders, and back."""
