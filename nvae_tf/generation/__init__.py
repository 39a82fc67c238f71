"""What a trained model generates, and how it is shown."""

from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.generation.sampling import ImageGenerator, generate_images

__all__ = ["ImageGenerator", "generate_images", "image_grid", "write_png"]
