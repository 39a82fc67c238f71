"""What people do with a trained model's latents and pictures, and how it is shown."""

from nvae_tf.generation.encoding import encode_images
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.generation.image_sequence import write_animation, write_pictures
from nvae_tf.generation.interpolation import interpolate_images, interpolate_latents
from nvae_tf.generation.latents_file import StoredLatents, load_latents, save_latents
from nvae_tf.generation.nearest import NearestImages, nearest_images
from nvae_tf.generation.reconstruction import reconstruct_images, vary_images
from nvae_tf.generation.sampling import ImageGenerator, decode_images, generate_images
from nvae_tf.generation.shared_groups import samples_sharing_groups

__all__ = [
    "ImageGenerator",
    "NearestImages",
    "StoredLatents",
    "decode_images",
    "encode_images",
    "generate_images",
    "image_grid",
    "interpolate_images",
    "interpolate_latents",
    "load_latents",
    "nearest_images",
    "reconstruct_images",
    "samples_sharing_groups",
    "save_latents",
    "vary_images",
    "write_animation",
    "write_pictures",
    "write_png",
]
