"""The page of `train.report`."""
