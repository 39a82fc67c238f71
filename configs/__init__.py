"""The presets: one file a data set."""
