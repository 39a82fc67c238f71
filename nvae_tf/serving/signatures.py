"""The signatures of the SavedModel: functions of named, batch-first tensors.

The batch is the first axis of every input and output, as TensorFlow Serving's batching requires. Where latents
are drawn there is one seed a row, so that a row's result depends on that row alone, whatever batch it is in.

A seed has 64 bits, the two words of the model's own seeds (`nvae_tf.models.latents.image_seeds`), low word
first: for 0 <= s < 2**31 the seed `s + i * 2**32` gives a row the draws of image i in
`model.generate(count, seed=s)`, `model.encode(images, seed=s)` and so on. Plain `s` gives those of image 0.

Inputs are checked inside the exported graph, so that a server refuses nonsense as INVALID_ARGUMENT. A checked tensor
is tied to its check by a control dependency, which no pruning of the graph can drop.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from nvae_tf import objective
from nvae_tf.config import ModelConfig, check
from nvae_tf.data.pipeline import intensity_table
from nvae_tf.layers import ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.latents import GivenSource, GroupLayers, LatentSample, LatentSource, PriorSource, noise_per_image
from nvae_tf.models.nvae import Decoded

Tensors = dict[str, tf.Tensor]
_OF_IMAGES = ("sample", "encode", "decode", "decode_upper_groups", "reconstruct", "score")
# The same with images as the bytes of PNG files in place of tensors.
_SUFFIX = "_png"
SIGNATURES = (*_OF_IMAGES, *(f"{name}{_SUFFIX}" for name in _OF_IMAGES))
_MOST_PNG_CHANNELS = 4
# How a PNG file begins, and the length up to which its header has the size.
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER_LENGTH = 24
# How many of the wrong values an error message lists.
_LISTED = 5


class FlatLatentModel:
    """A model whose latents are one tensor `[batch, total]`: the groups one after another, the top group first.

    `forward` makes the pass through the networks of each call, e.g. with folded weights.
    """

    def __init__(self, model: NVAE, forward: Callable[[], ForwardPass] = ForwardPass):
        without = "models that are conditional on classes can't be exported yet; train without data.labels to export"
        check(not model.config.num_classes, f"model.num_classes = {model.config.num_classes}: {without}")
        self.model, self._forward = model, forward
        self.latent_shapes = model.plan.latent_shapes()
        self._sizes = [math.prod(shape) for shape in self.latent_shapes]
        self.total = sum(self._sizes)

    def latent_layout(self) -> dict[str, Any]:
        """The order, the groups' shapes and the length of a flat latent, for JSON."""
        return {
            "order": "group after group, the top group first; each [height, width, channels], row-major",
            "shapes": [list(shape) for shape in self.latent_shapes],
            "total": self.total,
        }

    def _groups(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """`[batch, total]` -> `[batch, height, width, channels]` a group."""
        groups = zip(tf.split(flat, self._sizes, axis=1), self.latent_shapes, strict=True)
        return [tf.reshape(group, [-1, *shape]) for group, shape in groups]

    def _flat(self, decoded: Decoded) -> tf.Tensor:
        """The latents `[batch, total]` of a pass."""
        latents = zip(decoded.latents, self._sizes, strict=True)
        return tf.concat([tf.reshape(latent.z, [-1, size]) for latent, size in latents], axis=1)

    def _decoded(self, sources: Sequence[LatentSource], flat: tf.Tensor) -> Decoded:
        # Where the number of rows is known it is no operation of the graph.
        return self.model.top_down_pass(sources, flat.shape[0] or tf.shape(flat)[0], self._forward())


@dataclasses.dataclass(frozen=True)
class UpperGroupsSource:
    """Takes the latent of the rows that have one, and draws the others from the prior."""

    latent: tf.Tensor  # [batch, height, width, latent channels], after the flows
    noise: tf.Tensor  # standard-normal, of the same shape
    temperature: tf.Tensor  # [batch, 1, 1, 1], multiplies the prior's sigma
    is_given: tf.Tensor  # [batch, 1, 1, 1], which rows' latents are taken

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of every row, beside the prior that it could have come from."""
        drawn = PriorSource(self.noise, self.temperature).draw(layers, state)
        z = tf.where(self.is_given, self.latent, drawn.z)
        return LatentSample(z, z, drawn.prior)


class Signatures(FlatLatentModel):
    """The signatures of one model.

    H, W and C are the height, width and channels of images, `total` is the number of latent values of an
    image, `groups` the number of latent groups. Images are float32 `[batch, H, W, C]` in [0, 1], seeds int64 `[batch]`,
    temperatures float32 `[batch]`.

    `NAME_png` is NAME with `image_bytes` `[batch]`, the bytes of PNG files, wherever NAME has `image`. It is meant for
    REST, which sends bytes as base64. Models of more than 4 channels don't have it.

    An input that is out of range raises tf.errors.InvalidArgumentError, in the export as well.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The names of this model's signatures."""
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
        latent = tf.TensorSpec([None, self.total], tf.float32, "latent")
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
        return self._of(getattr(self, name.removesuffix(_SUFFIX)), name)

    def archive(self) -> keras.export.ExportArchive:
        """All signatures, ready to be written, with the weights that they use and no other state."""
        archive = keras.export.ExportArchive()
        # Traced once and called by both, so that the network is not in the file twice.
        traced = {
            name: tf.function(getattr(self, name), input_signature=self.input_specs(name), autograph=False)
            for name in _OF_IMAGES
        }
        for name in self.names:
            archive.add_endpoint(name, self._of(traced[name.removesuffix(_SUFFIX)], name), self.input_specs(name))
        return archive

    def sample(self, seed: tf.Tensor, temperature: tf.Tensor) -> Tensors:
        """Images from the prior.

        The temperature, above 0, multiplies every prior's sigma (Vahdat & Kautz 2020, section 4.2).

        Returns:
          `image` `[batch, H, W, C]`: the mean of the likelihood, whose own temperature is 1; `image_uint8`: the same
          as 8-bit pixels.
        """
        temperature = _checked_temperature(temperature)
        seeds = _words(_checked_rows("seed", seed, temperature, "temperature"))
        return _images(self.model.generate_from_seeds(seeds, _over_pixels(temperature), forward=self._forward()).mean())

    def encode(self, image: tf.Tensor, seed: tf.Tensor) -> Tensors:
        """Latents drawn from the posterior of images.

        Returns:
          `latent` `[batch, total]`: the groups one after another, the top group first, each flattened from
          `[height, width, channels]`; `assets.extra/latents.json` has their shapes.
        """
        return {"latent": self._flat(self._infer(image, seed))}

    def decode(self, latent: tf.Tensor) -> Tensors:
        """The images of `sample`, for latents `[batch, total]` from anywhere, laid out as `encode` gives them."""
        sources = [GivenSource(group) for group in self._groups(_checked_latent(latent))]
        return _images(self._decoded(sources, latent).likelihood.mean())

    def decode_upper_groups(
        self, latent: tf.Tensor, num_groups: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor
    ) -> Tensors:
        """Like `decode` with the latents of the upper groups, which hold the large structure; the others are drawn.

        Args:
          latent: `[batch, total]`; the values of groups that are drawn are not used.
          num_groups: int32 `[batch]`, from 0 to `groups`; the latents of so many groups, from the top, are used.
          seed: `[batch]`, of the groups that are drawn.
          temperature: `[batch]`, above 0, of their priors.
        """
        latent = _checked_latent(latent)
        groups = len(self.latent_shapes)
        valid = (num_groups >= 0) & (num_groups <= groups)
        num_groups = _checked(num_groups, valid, f"num_groups: values must be from 0 to {groups}")
        num_groups = _checked_rows("num_groups", num_groups, latent, "latent")
        seeds = _words(_checked_rows("seed", seed, latent, "latent"))
        temperature = _checked_rows("temperature", _checked_temperature(temperature), latent, "latent")
        noise = noise_per_image(self.latent_shapes, seeds)
        sources = [
            UpperGroupsSource(group, eps, _over_pixels(temperature), _over_pixels(num_groups > index))
            for index, (group, eps) in enumerate(zip(self._groups(latent), noise, strict=True))
        ]
        return _images(self._decoded(sources, latent).likelihood.mean())

    def reconstruct(self, image: tf.Tensor, seed: tf.Tensor) -> Tensors:
        """The images that `decode` gives for the latent of `encode` with the same inputs."""
        return _images(self._infer(image, seed).likelihood.mean())

    def score(self, image: tf.Tensor, seed: tf.Tensor) -> Tensors:
        """The negative evidence lower bound at the latents that `encode` draws with the same seed.

        It is the bound that training lowers. `model.score` with one importance sample has the same mean, but
        is noisier for a model without flows: here the KL is in closed form then.

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
        valid = (image >= 0.0) & (image <= 1.0)  # false for NaN
        image = _checked(image, valid, "image: values must be finite and in [0, 1] (divide 8-bit values by 255)")
        seeds = _words(_checked_rows("seed", seed, image, "image"))
        return self.model.inference_pass(image, noise_per_image(self.latent_shapes, seeds), self._forward())

    def _of(self, signature: Callable[..., Tensors], name: str) -> Callable[..., Tensors]:
        """The signature called `name`, of that with tensors; a plain function: archives trace a `tf.function` again."""
        if not name.endswith(_SUFFIX):
            return lambda *inputs: signature(*inputs)
        specs = self.input_specs(name)

        def function(*inputs: tf.Tensor) -> Tensors:
            given = [
                images_from_bytes(value, self.model.config) if spec.name == "image_bytes" else value
                for value, spec in zip(inputs, specs, strict=True)
            ]
            outputs = signature(*given)
            return {"image_bytes": bytes_of_images(outputs["image"])} if "image" in outputs else outputs

        return function


def _images(image: tf.Tensor) -> Tensors:
    finite = tf.math.is_finite(image)  # as long as temperatures and latents are reasonable
    image = _checked(image, finite, "image: not finite; a temperature or a latent is too large")
    return {"image": image, "image_uint8": pixels_of_images(image)}


def _over_pixels(rows: tf.Tensor) -> tf.Tensor:
    """One value a row `[batch]` for all of its pixels and channels."""
    return rows[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _words(seed: tf.Tensor) -> tf.Tensor:
    """The two words `[batch, 2]` of seeds `[batch]`: the seeds of the model."""
    return tf.bitcast(seed, tf.int32)


def _checked_temperature(temperature: tf.Tensor) -> tf.Tensor:
    valid = tf.math.is_finite(temperature) & (temperature > 0.0)
    return _checked(temperature, valid, "temperature: values must be finite and above 0")


def _checked_latent(latent: tf.Tensor) -> tf.Tensor:
    return _checked(latent, tf.math.is_finite(latent), "latent: values must be finite")


def _checked_rows(own_name: str, value: tf.Tensor, beside: tf.Tensor, name: str) -> tf.Tensor:
    """Values `[batch]`, as many as `beside`, the input called `name`, has rows: a single one would broadcast."""
    rows, wanted = tf.shape(value)[0], tf.shape(beside)[0]
    message = f"{own_name}: there must be one for each row of {name}; found and rows given:"
    return _tied(value, tf.equal(rows, wanted), [message, rows, wanted])


def _checked(value: tf.Tensor, valid: tf.Tensor, message: str) -> tf.Tensor:
    wrong = tf.boolean_mask(value, ~valid)
    return _tied(value, tf.reduce_all(valid), [f"{message}; wrong values:", wrong])


def _tied(value: tf.Tensor, condition: tf.Tensor, message: list) -> tf.Tensor:
    """The value, tied to a check of the condition; the message is a text and tensors."""
    with tf.control_dependencies([tf.debugging.Assert(condition, message, summarize=_LISTED)]):
        return tf.identity(value)


def images_from_bytes(image_bytes: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Images `[batch, height, width, channels]` in [0, 1] of PNG files `[batch]` of the model's size.

    Values are quantized to the bits of the model's data, as in training: with 1 bit, values from 128 up are white.
    Gray is converted to color and back where the model has other channels.
    """
    shape = (config.image_height, config.image_width, config.image_channels)

    def pixels_of(content: tf.Tensor) -> tf.Tensor:
        content = _of_size(content, config.image_height, config.image_width)
        # The operation has no gray with alpha to ask for: 0 takes what the file has.
        channels = 0 if config.image_channels == 2 else config.image_channels
        pixels = tf.io.decode_png(content, channels=channels, dtype=tf.uint8)
        message = f"image_bytes: a picture must be of shape {list(shape)} (height, width, channels); this one is of:"
        pixels = _tied(pixels, tf.reduce_all(tf.equal(tf.shape(pixels), shape)), [message, tf.shape(pixels)])
        # Not `ensure_shape`, whose own message might come first.
        pixels.set_shape(shape)
        return pixels

    pixels = tf.map_fn(pixels_of, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
    return tf.gather(tf.constant(intensity_table(config.num_bits)), tf.cast(pixels, tf.int32))


def _of_size(content: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A PNG file whose header has this size: a small file may be gigabytes when it is decoded."""
    beginning = tf.strings.substr(tf.strings.join([content, " " * _HEADER_LENGTH]), 0, _HEADER_LENGTH)
    is_png = tf.equal(tf.strings.substr(beginning, 0, len(_PNG)), _PNG)
    beginning = _tied(beginning, is_png, ["image_bytes: must be PNG files"])
    # Width and height stand at the end of it, the most significant byte first.
    size = tf.reverse(tf.io.decode_raw(tf.strings.substr(beginning, 16, 8), tf.int32, little_endian=False), [0])
    message = f"image_bytes: a picture must be of size {[height, width]} (height, width); this one is of:"
    return _tied(content, tf.reduce_all(tf.equal(size, [height, width])), [message, size])


def pixels_of_images(image: tf.Tensor) -> tf.Tensor:
    """uint8 pixels of images of any shape in [0, 1]."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def bytes_of_images(image: tf.Tensor) -> tf.Tensor:
    """PNG files `[batch]` of images `[batch, height, width, 1 to 4]` in [0, 1]."""
    signature = tf.TensorSpec((), tf.string)
    return tf.map_fn(tf.io.encode_png, pixels_of_images(image), fn_output_signature=signature)
