"""What models are good for: recipes that the docs measure, and an app. Speed is measured in `benchmarks/`."""
