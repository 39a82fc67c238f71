"""What models are good for: recipes that the docs measure, and an app. Speed is measured in `benchmarks/`."""

from nvae_tf.errors import start_tensorflow_quietly

start_tensorflow_quietly()
