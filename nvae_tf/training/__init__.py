"""Runs: loop, folder, checkpoints, devices, recovery."""
