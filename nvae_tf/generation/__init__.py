"""What a trained model generates, and how it is shown."""

from nvae_tf.generation.image_grid import image_grid, write_png

__all__ = ["image_grid", "write_png"]
