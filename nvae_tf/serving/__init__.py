"""Exports and what serves them."""
