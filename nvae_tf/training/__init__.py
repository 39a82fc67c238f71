"""Runs: the loop, its outputs, devices, workers."""
