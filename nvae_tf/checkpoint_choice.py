"""Which of a run's checkpoints are to be had by name, for `nvae_tf.load` and the commands; no TensorFlow."""

CHECKPOINTS = ("latest", "best")
CHECKPOINT_HELP = "Which of the run's checkpoints: the latest, or the one with the best test score (train.keep_best)."
