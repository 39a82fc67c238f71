"""What `train.evaluate` measures: a module a metric."""
