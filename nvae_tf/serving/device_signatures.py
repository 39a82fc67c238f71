"""The signatures of files for devices (TFLite, ONNX), what a file says of its model, and inputs to try it with."""

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.config import config_to_dict
from nvae_tf.layers import FoldedPass, FoldedWeights, folded_weights
from nvae_tf.layers.cpu_kernels import plain_operations
from nvae_tf.models import NVAE
from nvae_tf.models.latents import ComposedSource, GivenSource, PriorSource, groups_of_flat
from nvae_tf.models.passes import Decoded, inference_pass
from nvae_tf.serving.signatures import FlatLatentModel
from nvae_tf.serving.verification import Arrays

Label = tf.Tensor | None  # int32 [batch], -1 for none; None for models without classes
_BATCH = 16  # images computed at once, which bounds the memory


class DeviceSignatures(FlatLatentModel):
    """The signatures of one model for devices, a method for each of `DEVICE_SIGNATURES`, of `rows` rows.

    They take random draws as inputs, because TFLite has no builtin that draws random numbers from a seed, and don't
    check inputs, because it has none that stops. Images are `[batch, H, W, C]` in [0, 1], latents and standard-normal
    noise `[batch, total]`, all float32; models with classes take int32 `label` `[batch]` too, -1 for none.
    """

    rows: int | None = 1  # an open batch takes 8 % longer for one image, and some delegates require fixed shapes
    take_images = ("encode", "reconstruct", "score")  # the signatures that have images among their inputs

    def input_specs(self, name: str) -> list[tf.TensorSpec]:
        """Returns the exported inputs of the signature called `name`, in the order of its arguments."""
        names = {"decode": ["latent"], "sample": ["noise", "temperature"]}
        names["compose"] = ["latent", "keep", "noise", "temperature"]
        label = ["label"] if self.model.config.num_classes else []
        return self._specs(name, names.get(name, ["image", "noise"]) + label, self.rows)

    def write(self, name: str, folder: str) -> None:
        """Writes the signature called `name` as a new SavedModel that can be converted to builtin operations."""
        archive = keras.export.ExportArchive()
        with plain_operations():
            archive.add_endpoint(name, getattr(self, name), self.input_specs(name))
            archive.write_out(folder, verbose=False)

    def decode(self, latent: tf.Tensor, label: Label = None) -> dict[str, tf.Tensor]:
        """Decodes latents to `image`, the likelihood's mean."""
        sources = list(map(GivenSource, groups_of_flat(latent, self.latent_shapes)))
        return {"image": self._decoded(sources, latent, label).likelihood.mean()}

    def encode(self, image: tf.Tensor, noise: tf.Tensor, label: Label = None) -> dict[str, tf.Tensor]:
        """Draws `latent` from the posterior of images; noise of zeros gives its means."""
        return {"latent": self._inferred(image, noise, label).flat_latents()}

    def sample(self, noise: tf.Tensor, temperature: tf.Tensor, label: Label = None) -> dict[str, tf.Tensor]:
        """Draws `image` from the prior; the temperature `[batch]`, above 0, multiplies every prior's sigma."""
        return {"image": self.drawn(noise, temperature, label).likelihood.mean()}

    def reconstruct(self, image: tf.Tensor, noise: tf.Tensor, label: Label = None) -> dict[str, tf.Tensor]:
        """Reconstructs `image`: `decode` of the latent that `encode` draws with the same inputs."""
        return {"image": self._inferred(image, noise, label).likelihood.mean()}

    def compose(
        self, latent: tf.Tensor, keep: tf.Tensor, noise: tf.Tensor, temperature: tf.Tensor, label: Label = None
    ) -> dict[str, tf.Tensor]:
        """Draws `image` and `latent`, of the groups whose int32 `keep` `[batch, groups]` is 0; takes the others.

        The temperatures `[batch, groups]`, above 0, multiply the priors' sigmas.
        """
        temperatures = tf.unstack(temperature[:, :, tf.newaxis, tf.newaxis, tf.newaxis], axis=1)
        given, noise = (groups_of_flat(flat, self.latent_shapes) for flat in (latent, noise))
        drawn = map(PriorSource, noise, temperatures)
        decoded = self._decoded(list(map(ComposedSource, given, tf.unstack(keep > 0, axis=1), drawn)), latent, label)
        return {"image": decoded.likelihood.mean(), "latent": decoded.flat_latents()}

    def drawn(self, noise: tf.Tensor, temperature: tf.Tensor, label: Label = None) -> Decoded:
        """The result of the pass of `sample`."""
        temperature = temperature[:, tf.newaxis, tf.newaxis, tf.newaxis]
        sources = [PriorSource(eps, temperature) for eps in groups_of_flat(noise, self.latent_shapes)]
        return self._decoded(sources, noise, label)

    def _inferred(self, image: tf.Tensor, noise: tf.Tensor, label: Label) -> Decoded:
        return inference_pass(self.model, image, groups_of_flat(noise, self.latent_shapes), self._pass(label))


def folded_signatures(model: NVAE, folded: FoldedWeights | None = None, kind=DeviceSignatures) -> DeviceSignatures:
    """Returns the signatures with folded weights, of an export or of the model, for conversion."""
    folded = folded_weights(model._stacks()) if folded is None else folded
    # Inline: the converter would give all layers that call one function the constant weights of one layer.
    return kind(model, lambda: FoldedPass(inlined=True, folded=folded))


def file_facts(signatures: DeviceSignatures, name: str, source: Mapping | None, *packages: str) -> dict[str, Any]:
    """Returns what a file of the signature called `name`, made with these packages, says of its model, for JSON."""
    return {
        "signature": name,
        # The model's settings alone: the settings of a run may name a folder of this machine.
        "config": {"model": config_to_dict(signatures.model.config)},
        "latents": signatures.latent_layout(),
        "source": dict(source or {}),
        "versions": {"tensorflow": tf.__version__} | {each: importlib.metadata.version(each) for each in packages},
    }


def device_inputs(signatures: DeviceSignatures, name: str, count: int, images: np.ndarray | None, seed: int) -> Arrays:
    """Returns random inputs `[count, ...]` by name of a signature, `[len(images), ...]` where there are images.

    Latents are drawn from the prior; with images `[count, H, W, C]`, every second row from an image's posterior.
    """
    generator, count = np.random.default_rng(seed), count if images is None else len(images)
    noise = generator.standard_normal((count, signatures.total)).astype(np.float32)
    temperature = generator.uniform(0.6, 1.0, count).astype(np.float32)
    classes = signatures.model.config.num_classes
    label = {"label": generator.integers(-1, classes, count).astype(np.int32)} if classes else {}
    if name in signatures.take_images:
        return {"image": images, "noise": noise} | label
    drawn = {"noise": noise, "temperature": temperature} | label
    if name == "sample":
        return drawn
    latent = in_batches(lambda **given: signatures.drawn(**given).flat_latents(), drawn)
    if images is not None:
        latent[1::2] = in_batches(signatures.encode, {"image": images, "noise": noise} | label)[1::2]
    if name == "compose":
        keep = generator.integers(0, 2, [count, signatures.num_groups], np.int32)
        temperature = np.tile(temperature[:, np.newaxis], [1, signatures.num_groups])
        return {"latent": latent, "keep": keep, "noise": noise[::-1], "temperature": temperature} | label
    return {"latent": latent} | label


def in_batches(compute: Callable[..., Any], inputs: Arrays) -> np.ndarray:
    """Returns the only result of `compute`, a function of named tensors, for all rows of the inputs, on the CPU."""
    with tf.device("/CPU:0"):
        batches = tf.data.Dataset.from_tensor_slices(inputs).batch(_BATCH)
        return np.concatenate([tf.nest.flatten(compute(**rows))[0] for rows in batches])
