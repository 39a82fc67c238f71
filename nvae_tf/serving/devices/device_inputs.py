"""Inputs for a device's signatures: for the ranges of int8, and to compare a device's numbers with the model's."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.serving.devices.device_signatures import DeviceSignatures

Arrays = dict[str, np.ndarray]

# Images computed at once, which bounds the memory.
_BATCH = 16
# What people sample with; 1 is the model's own distribution.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.6, 1.0


def takes_images(name: str) -> bool:
    """Whether the signature called `name` has images among its inputs."""
    return name in ("encode", "reconstruct")


def device_inputs(signatures: DeviceSignatures, name: str, count: int, images: np.ndarray | None, seed: int) -> Arrays:
    """Inputs of the signature called `name`, each `[count, ...]`, by name.

    Latents are drawn from the prior, at temperatures from 0.6 to 1; with images, those of every second row from the
    image's posterior, because a device decodes both.

    Args:
      signatures: of the model.
      name: one of `DEVICE_SIGNATURES`.
      count: how many rows.
      images: `[count, H, W, C]`; may be left out where the signature takes none.
      seed: of all draws.
    """
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((count, signatures.total)).astype(np.float32)
    temperature = generator.uniform(_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE, count).astype(np.float32)
    if takes_images(name):
        return {"image": images, "noise": noise}
    if name == "sample":
        return {"noise": noise, "temperature": temperature}
    latent = in_batches(signatures.prior_latents, {"noise": noise, "temperature": temperature})
    if images is not None:
        posterior = in_batches(
            lambda **inputs: signatures.encode(**inputs)["latent"], {"image": images, "noise": noise}
        )
        latent[1::2] = posterior[1::2]
    return {"latent": latent}


def in_batches(compute, inputs: Arrays) -> np.ndarray:
    """What `compute`, a function of named tensors, gives for all rows of the inputs, on the CPU."""
    count = len(next(iter(inputs.values())))
    parts = []
    with tf.device("/CPU:0"):
        for first in range(0, count, _BATCH):
            rows = {name: tf.constant(array[first : first + _BATCH]) for name, array in inputs.items()}
            parts.append(compute(**rows).numpy())
    return np.concatenate(parts)


def single_rows(inputs: Arrays) -> Iterator[Arrays]:
    """The rows one after another, each with a batch of 1."""
    for index in range(len(next(iter(inputs.values())))):
        yield {name: array[index : index + 1] for name, array in inputs.items()}
