"""The commands of export and serving: one script each."""
