"""Speed and memory of what users do, each measured against a yardstick in the same run."""
