"""Makes a SavedModel: its signatures' parts, what travels with it, and the check before it is published."""
