"""What a model can do on a device: functions of named tensors whose random draws come from outside.

Beside those of `nvae_tf.serving.signatures` there are no seeds, because TFLite has no builtin that draws random numbers
from one, and no checks of inputs, because it has no builtin that stops: what a caller gives is computed with.

A device computes one picture at a time: the batch, the first axis of everything, is 1 in what is exported. TFLite could
leave it open, but shapes that are known only at run time cost more operations (47 reshapes instead of 3 in the
decoder of `configs/digits.py`), 8 % of its time, and delegates that ask for fixed shapes; and a batch of 8 took as
long a picture as a batch of 1.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.latents import GivenSource, LatentSource, PriorSource
from nvae_tf.models.nvae import Decoded
from nvae_tf.serving.latent_layout import flat_of_groups, groups_of_flat, latent_sizes

DEVICE_BATCH = 1


class DeviceSignatures:
    """The device's signatures of one model, a method each; `nvae_tf.serving.devices.tflite_choices` has their names.

    H, W and C are the height, width and channels of images, `total` is the number of latent values of an image. A
    flat latent and flat noise have the groups one after another, the top group first, each flattened from `[height,
    width, channels]`. All is float32; images are in [0, 1]. The methods take any batch.

    Args:
      model: the model.
      forward: makes what each pass through the networks is given: inference as the model computes it, or an
        equivalent of fewer operations.
    """

    def __init__(self, model: NVAE, forward: Callable[[], ForwardPass] = ForwardPass):
        self.model = model
        self.latent_shapes = model.plan.latent_shapes()
        self._forward = forward

    @property
    def total(self) -> int:
        """Number of latent values of an image."""
        return sum(latent_sizes(self.latent_shapes))

    def input_specs(self, name: str) -> list[tf.TensorSpec]:
        """The exported inputs of the signature called `name`, in the order of its arguments."""
        config = self.model.config
        image_shape = [DEVICE_BATCH, config.image_height, config.image_width, config.image_channels]
        image = tf.TensorSpec(image_shape, tf.float32, "image")
        latent, noise = (tf.TensorSpec([DEVICE_BATCH, self.total], tf.float32, name) for name in ("latent", "noise"))
        temperature = tf.TensorSpec([DEVICE_BATCH], tf.float32, "temperature")
        return {
            "decode": [latent],
            "encode": [image, noise],
            "sample": [noise, temperature],
            "reconstruct": [image, noise],
        }[name]

    def archive(self, name: str) -> keras.export.ExportArchive:
        """The signature called `name`, ready to be written, with the weights that it uses."""
        archive = keras.export.ExportArchive()
        archive.add_endpoint(name, getattr(self, name), self.input_specs(name))
        return archive

    def decode(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likelihood's mean.

        Args:
          latent: `[batch, total]`, as `encode` gives it.

        Returns:
          `image` `[batch, H, W, C]`.
        """
        sources = [GivenSource(z) for z in groups_of_flat(latent, self.latent_shapes)]
        return {"image": self._decoded(sources, latent).likelihood.mean()}

    def encode(self, image: tf.Tensor, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        """Latents from the posterior.

        Args:
          image: `[batch, H, W, C]`.
          noise: `[batch, total]`, standard-normal draws; zeros give the posterior's means, each given those above.

        Returns:
          `latent` `[batch, total]`.
        """
        return {"latent": self._flat(self._inferred(image, noise))}

    def sample(self, noise: tf.Tensor, temperature: tf.Tensor) -> dict[str, tf.Tensor]:
        """Pictures from the prior.

        Args:
          noise: `[batch, total]`, standard-normal draws.
          temperature: `[batch]`, above 0; multiplies every prior's sigma.

        Returns:
          `image` `[batch, H, W, C]`: the mean of the likelihood.
        """
        return {"image": self._drawn(noise, temperature).likelihood.mean()}

    def reconstruct(self, image: tf.Tensor, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `decode` makes of the latent that `encode` gives for the same inputs.

        Args:
          image: `[batch, H, W, C]`.
          noise: `[batch, total]`.

        Returns:
          `image` `[batch, H, W, C]`.
        """
        return {"image": self._inferred(image, noise).likelihood.mean()}

    def prior_latents(self, noise: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """The latents `[batch, total]` of the pictures that `sample` gives for the same inputs; not exported."""
        return self._flat(self._drawn(noise, temperature))

    def _drawn(self, noise: tf.Tensor, temperature: tf.Tensor) -> Decoded:
        temperature = temperature[:, tf.newaxis, tf.newaxis, tf.newaxis]
        groups = groups_of_flat(noise, self.latent_shapes)
        return self._decoded([PriorSource(eps, temperature) for eps in groups], noise)

    def _inferred(self, image: tf.Tensor, noise: tf.Tensor) -> Decoded:
        return self.model.infer(image, groups_of_flat(noise, self.latent_shapes), self._forward())

    def _decoded(self, sources: Sequence[LatentSource], flat: tf.Tensor) -> Decoded:
        # Where the number of rows is known it is no operation of the graph.
        return self.model.top_down_pass(sources, flat.shape[0] or tf.shape(flat)[0], self._forward())

    def _flat(self, decoded: Decoded) -> tf.Tensor:
        return flat_of_groups([latent.z for latent in decoded.latents], self.latent_shapes)
