"""What an exported model can do: the signatures of the SavedModel, functions of named, batch-first tensors.

The batch is the first axis of every input and output, as TensorFlow Serving's batching asks. Where latents
are drawn there is one seed a row, so that a row's result depends on that row alone, whatever batch it is in.

A seed has 64 bits, the two words of the model's own seeds (`nvae_tf.models.noise.image_seeds`), low word
first: for 0 <= s < 2**31 the seed `s + i * 2**32` gives a row the draws of image i in
`model.generate(count, seed=s)`, `model.encode(images, seed=s)` and so on. Plain `s` gives those of image 0.
"""

import keras
import tensorflow as tf

from export.input_checks import checked_image, checked_latent, checked_seed, checked_temperature
from nvae_tf import objective
from nvae_tf.models import NVAE
from nvae_tf.models.latents import GivenSource
from nvae_tf.models.noise import noise_per_image
from nvae_tf.models.nvae import Decoded

SIGNATURES = ("sample", "encode", "decode", "reconstruct", "score")


class Signatures:
    """The signatures of one model, a method each; `SIGNATURES` has their names.

    H, W and C are the height, width and channels of images, `total` is the number of latent values of an
    image, `groups` the number of latent groups. Seeds are int64, all else is float32; images are in [0, 1].

    Raises:
      tf.errors.InvalidArgumentError: an input is out of range, the message names it. In the export as well.
    """

    def __init__(self, model: NVAE):
        self.model = model
        self.latent_shapes = model.plan.latent_shapes()
        self.latent_sizes = [height * width * channels for height, width, channels in self.latent_shapes]

    def input_specs(self, name: str) -> list[tf.TensorSpec]:
        """The inputs of the signature called `name`, in the order of its arguments."""
        config = self.model.config
        image_shape = [None, config.image_height, config.image_width, config.image_channels]
        seed = tf.TensorSpec([None], tf.int64, "seed")
        temperature = tf.TensorSpec([None], tf.float32, "temperature")
        image = tf.TensorSpec(image_shape, tf.float32, "image")
        latent = tf.TensorSpec([None, sum(self.latent_sizes)], tf.float32, "latent")
        return {
            "sample": [seed, temperature],
            "encode": [image, seed],
            "decode": [latent],
            "reconstruct": [image, seed],
            "score": [image, seed],
        }[name]

    def archive(self) -> keras.export.ExportArchive:
        """All signatures, ready to be written, with the weights that they use and no other state."""
        archive = keras.export.ExportArchive()
        for name in SIGNATURES:
            archive.add_endpoint(name, getattr(self, name), self.input_specs(name))
        return archive

    def sample(self, seed: tf.Tensor, temperature: tf.Tensor) -> dict[str, tf.Tensor]:
        """Pictures from the prior.

        Args:
          seed: `[batch]`.
          temperature: `[batch]`, above 0; multiplies every prior's sigma (Vahdat & Kautz 2020, section 4.2).

        Returns:
          `image` `[batch, H, W, C]`: the mean of the likelihood, whose own temperature is 1.
        """
        temperature = checked_temperature(temperature)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        seeds = _words(checked_seed(seed, temperature, "temperature"))
        return {"image": self.model.generate_from_seeds(seeds, temperature).mean()}

    def encode(self, image: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Latents drawn from the posterior.

        Args:
          image: `[batch, H, W, C]`.
          seed: `[batch]`.

        Returns:
          `latent` `[batch, total]`: the groups one after another, the top group first, each flattened from
          `[height, width, channels]`; `assets.extra/latents.json` has their shapes.
        """
        latents = self._infer(image, seed).latents
        rows = tf.shape(image)[0]
        return {"latent": tf.concat([tf.reshape(latent.z, [rows, -1]) for latent in latents], axis=1)}

    def decode(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likelihood's mean, for latents from anywhere.

        Args:
          latent: `[batch, total]`, laid out as `encode` gives it.

        Returns:
          `image` `[batch, H, W, C]`.
        """
        groups = tf.split(checked_latent(latent), self.latent_sizes, axis=1)
        rows = tf.shape(latent)[0]
        sources = [
            GivenSource(tf.reshape(group, [rows, *shape]))
            for group, shape in zip(groups, self.latent_shapes, strict=True)
        ]
        return {"image": self.model.top_down_pass(sources, rows).likelihood.mean()}

    def reconstruct(self, image: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `decode` makes of the latent that `encode` gives for the same inputs.

        Args:
          image: `[batch, H, W, C]`.
          seed: `[batch]`.

        Returns:
          `image` `[batch, H, W, C]`.
        """
        return {"image": self._infer(image, seed).likelihood.mean()}

    def score(self, image: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
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
        decoded = self._infer(image, seed)
        elbo = decoded.elbo(image)
        config = self.model.config
        num_values = config.image_height * config.image_width * config.image_channels
        return {
            "nats": elbo.nelbo,
            "bits_per_dim": objective.bits_per_dimension(elbo.nelbo, num_values),
            "kl_per_group": elbo.kl,
        }

    def _infer(self, image: tf.Tensor, seed: tf.Tensor) -> Decoded:
        image = checked_image(image)
        return self.model.infer(image, noise_per_image(self.latent_shapes, _words(checked_seed(seed, image, "image"))))


def _words(seed: tf.Tensor) -> tf.Tensor:
    """The two words `[batch, 2]` of seeds `[batch]`: the seeds of the model."""
    return tf.bitcast(seed, tf.int32)
