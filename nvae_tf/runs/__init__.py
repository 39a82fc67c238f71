"""A run on disk: its folder, its checkpoints, and what is loaded, shared and kept beside them."""
