"""The commands of training, evaluation and generation: one script each."""
