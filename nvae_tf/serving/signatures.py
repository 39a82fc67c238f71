"""What an exported model can do: the signatures of the SavedModel, functions of named, batch-first tensors.

The batch is the first axis of every input and output, as TensorFlow Serving's batching asks. Where latents
are drawn there is one seed a row, so that a row's result depends on that row alone, whatever batch it is in.

A seed has 64 bits, the two words of the model's own seeds (`nvae_tf.models.latents.image_seeds`), low word
first: for 0 <= s < 2**31 the seed `s + i * 2**32` gives a row the draws of image i in
`model.generate(count, seed=s)`, `model.encode(images, seed=s)` and so on. Plain `s` gives those of image 0.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from nvae_tf import objective
from nvae_tf.layers import ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.latents import GivenSource, noise_per_image
from nvae_tf.models.nvae import Decoded
from nvae_tf.serving.latent_layout import flat_of_groups, groups_of_flat, latent_sizes
from nvae_tf.serving.saved_models.input_checks import (
    checked_image,
    checked_latent,
    checked_num_groups,
    checked_result,
    checked_rows,
    checked_temperature,
)
from nvae_tf.serving.saved_models.latent_sources import UpperGroupsSource
from nvae_tf.serving.saved_models.picture_bytes import bytes_of_images, images_from_bytes, pixels_of_images

Tensors = dict[str, tf.Tensor]
_OF_IMAGES = ("sample", "encode", "decode", "decode_upper_groups", "reconstruct", "score")
# The same with pictures as the bytes of PNG files in place of tensors.
_SUFFIX = "_png"
SIGNATURES = (*_OF_IMAGES, *(f"{name}{_SUFFIX}" for name in _OF_IMAGES))
_MOST_PNG_CHANNELS = 4


class Signatures:
    """The signatures of one model; `SIGNATURES` has their names, those with pictures as files for up to 4 channels.

    H, W and C are the height, width and channels of images, `total` is the number of latent values of an
    image, `groups` the number of latent groups. Images are float32 in [0, 1], seeds int64.

    `NAME_png` is NAME with `image_bytes` `[batch]`, pictures as the bytes of PNG files, wherever NAME has `image`; for
    REST, which sends bytes as base64.

    Args:
      model: the model.
      forward: makes the pass through the networks of each call, e.g. with folded weights.

    Raises:
      tf.errors.InvalidArgumentError: an input is out of range, the message names it. In the export as well.
    """

    def __init__(self, model: NVAE, forward: Callable[[], ForwardPass] = ForwardPass):
        self.model = model
        self._forward = forward
        self.latent_shapes = model.plan.latent_shapes()

    @property
    def names(self) -> tuple[str, ...]:
        """Those of this model's signatures."""
        return SIGNATURES if self.model.config.image_channels <= _MOST_PNG_CHANNELS else _OF_IMAGES

    def input_specs(self, name: str) -> list[tf.TensorSpec]:
        """The inputs of the signature called `name`, in the order of its arguments."""
        config = self.model.config
        image_shape = [None, config.image_height, config.image_width, config.image_channels]
        seed = tf.TensorSpec([None], tf.int64, "seed")
        temperature = tf.TensorSpec([None], tf.float32, "temperature")
        image = tf.TensorSpec(image_shape, tf.float32, "image")
        if name.endswith(_SUFFIX):
            image = tf.TensorSpec([None], tf.string, "image_bytes")
        latent = tf.TensorSpec([None, sum(latent_sizes(self.latent_shapes))], tf.float32, "latent")
        num_groups = tf.TensorSpec([None], tf.int32, "num_groups")
        return {
            "sample": [seed, temperature],
            "encode": [image, seed],
            "decode": [latent],
            "decode_upper_groups": [latent, num_groups, seed, temperature],
            "reconstruct": [image, seed],
            "score": [image, seed],
        }[name.removesuffix(_SUFFIX)]

    def function(self, name: str) -> Callable[..., Tensors]:
        """The signature called `name`, from its inputs to its named outputs."""
        if not name.endswith(_SUFFIX):
            return getattr(self, name)
        return self._with_bytes(getattr(self, name.removesuffix(_SUFFIX)), self.input_specs(name))

    def archive(self) -> keras.export.ExportArchive:
        """All signatures, ready to be written, with the weights that they use and no other state."""
        archive = keras.export.ExportArchive()
        # Traced once and called by both, so that the network is not in the file twice.
        traced = {
            name: tf.function(getattr(self, name), input_signature=self.input_specs(name), autograph=False)
            for name in _OF_IMAGES
        }
        for name in self.names:
            base = traced[name.removesuffix(_SUFFIX)]
            function = self._with_bytes(base, self.input_specs(name)) if name.endswith(_SUFFIX) else _calling(base)
            archive.add_endpoint(name, function, self.input_specs(name))
        return archive

    def sample(self, seed: tf.Tensor, temperature: tf.Tensor) -> Tensors:
        """Pictures from the prior.

        Args:
          seed: `[batch]`.
          temperature: `[batch]`, above 0; multiplies every prior's sigma (Vahdat & Kautz 2020, section 4.2).

        Returns:
          `image` `[batch, H, W, C]`: the mean of the likelihood, whose own temperature is 1; `image_uint8`: the same
          as 8-bit pixels.
        """
        temperature = checked_temperature(temperature)
        seeds = _words(checked_rows("seed", seed, temperature, "temperature"))
        return _images(self.model.generate_from_seeds(seeds, _over_pixels(temperature), forward=self._forward()).mean())

    def encode(self, image: tf.Tensor, seed: tf.Tensor) -> Tensors:
        """Latents drawn from the posterior.

        Args:
          image: `[batch, H, W, C]`.
          seed: `[batch]`.

        Returns:
          `latent` `[batch, total]`: the groups one after another, the top group first, each flattened from
          `[height, width, channels]`; `assets.extra/latents.json` has their shapes.
        """
        latents = [latent.z for latent in self._infer(image, seed).latents]
        return {"latent": flat_of_groups(latents, self.latent_shapes)}

    def decode(self, latent: tf.Tensor) -> Tensors:
        """The likelihood's mean, for latents from anywhere.

        Args:
          latent: `[batch, total]`, laid out as `encode` gives it.

        Returns:
          See `sample`.
        """
        sources = [GivenSource(group) for group in groups_of_flat(checked_latent(latent), self.latent_shapes)]
        return _images(self.model.top_down_pass(sources, tf.shape(latent)[0], self._forward()).likelihood.mean())

    def decode_upper_groups(
        self, latent: tf.Tensor, num_groups: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor
    ) -> Tensors:
        """As `decode` with the upper groups' latents, which have what is large; the other groups are drawn.

        Args:
          latent: `[batch, total]`; the values of groups that are drawn are not used.
          num_groups: int32 `[batch]`, of how many groups from the top the latents are used, from 0 to `groups`.
          seed: `[batch]`, of the groups that are drawn.
          temperature: `[batch]`, above 0, of their priors.

        Returns:
          See `sample`.
        """
        latent = checked_latent(latent)
        num_groups = checked_num_groups(num_groups, latent, "latent", len(self.latent_shapes))
        seeds = _words(checked_rows("seed", seed, latent, "latent"))
        temperature = checked_rows("temperature", checked_temperature(temperature), latent, "latent")
        noise = noise_per_image(self.latent_shapes, seeds)
        sources = [
            UpperGroupsSource(group, eps, _over_pixels(temperature), _over_pixels(num_groups > index))
            for index, (group, eps) in enumerate(zip(groups_of_flat(latent, self.latent_shapes), noise, strict=True))
        ]
        return _images(self.model.top_down_pass(sources, tf.shape(latent)[0], self._forward()).likelihood.mean())

    def reconstruct(self, image: tf.Tensor, seed: tf.Tensor) -> Tensors:
        """What `decode` makes of the latent that `encode` gives for the same inputs.

        Args:
          image: `[batch, H, W, C]`.
          seed: `[batch]`.

        Returns:
          See `sample`.
        """
        return _images(self._infer(image, seed).likelihood.mean())

    def score(self, image: tf.Tensor, seed: tf.Tensor) -> Tensors:
        """The negative evidence lower bound at the latents that `encode` draws with the same seed.

        It is the bound that training lowers. `model.score` with one importance sample has the same mean, but
        is noisier for a model without flows: here the KL is in closed form then.

        Args:
          image: `[batch, H, W, C]`.
          seed: `[batch]`.

        Returns:
          `nats` `[batch]`: the bound; `bits_per_dim` `[batch]`: the same in bits for each of the H * W * C
          values; `kl_per_group` `[batch, groups]`: the KL's part of `nats`, top group first.
        """
        elbo = self._infer(image, seed).elbo(image)
        config = self.model.config
        num_values = config.image_height * config.image_width * config.image_channels
        return {
            "nats": elbo.nelbo,
            "bits_per_dim": objective.bits_per_dimension(elbo.nelbo, num_values),
            "kl_per_group": elbo.kl,
        }

    def _infer(self, image: tf.Tensor, seed: tf.Tensor) -> Decoded:
        image = checked_image(image)
        seeds = _words(checked_rows("seed", seed, image, "image"))
        return self.model.infer(image, noise_per_image(self.latent_shapes, seeds), self._forward())

    def _with_bytes(self, signature: Callable[..., Tensors], specs: list[tf.TensorSpec]) -> Callable[..., Tensors]:
        """A signature with pictures as bytes in place of tensors; the specs are of its own inputs."""

        def function(*inputs: tf.Tensor) -> Tensors:
            given = [
                images_from_bytes(value, self.model.config) if spec.name == "image_bytes" else value
                for value, spec in zip(inputs, specs, strict=True)
            ]
            outputs = signature(*given)
            return {"image_bytes": bytes_of_images(outputs["image"])} if "image" in outputs else outputs

        return function


def _calling(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """A plain function: an archive would trace anew what is a graph's function already."""
    return lambda *inputs: function(*inputs)


def _images(image: tf.Tensor) -> Tensors:
    image = checked_result(image)
    return {"image": image, "image_uint8": pixels_of_images(image)}


def _over_pixels(rows: tf.Tensor) -> tf.Tensor:
    """One value a row `[batch]` for all of its pixels and channels."""
    return rows[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _words(seed: tf.Tensor) -> tf.Tensor:
    """The two words `[batch, 2]` of seeds `[batch]`: the seeds of the model."""
    return tf.bitcast(seed, tf.int32)
