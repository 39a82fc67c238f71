"""What is shown of a run: page and model card."""
