"""A model as a lossless codec: bits-back coding of chunks of images (Townsend et al. 2019, arXiv 1901.04866).

For each batch the encoder draws the latents of group after group from the posteriors, with bits that lie on a stack. It
puts the pixels on the stack, and the latents with their priors, from the last group up. The decoder takes latents and
pixels from the stack and gives the bits of the draws back: below lie the batches before.
"""

import functools
import importlib.metadata
import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.compression.coders import LatentCoder, PixelCoder, Stack, bins_and_draws
from nvae_tf.compression.container import LARGEST_CHUNK, packed, unpacked
from nvae_tf.config import check, real_number, whole_number
from nvae_tf.errors import wrap_read_errors
from nvae_tf.layers import FoldedPass, FoldedWeights, folded_weights
from nvae_tf.models import passes
from nvae_tf.models.latents import GroupLayers, LatentSample, PosteriorSource, PriorSource, check_labels

_SAMPLED = 128  # images by which the bins of latents are chosen
_CODER = f"constriction {importlib.metadata.version('constriction').rpartition('.')[0]}"
_MOST_BATCH, _MOST_NUMBERS = 128, 2**24  # of a batch: images, and outputs of the network


class ModelWithWeights(NamedTuple):
    """A model for a codec."""

    model: Any  # an `NVAE`
    sha256: str  # how the weights' SHA-256 begins
    class_names: tuple[str, ...] = ()
    folded: FoldedWeights | None = None  # where the weights are not in the model, see `load_export`


class Encoded(NamedTuple):
    """A chunk of images, and parts of its size."""

    data: bytes
    start: int  # bits of the first images' draws, which nothing gives back
    marks: int  # bits of the marks of values near a tie
    images: int


class WhitenedSource(NamedTuple):
    """The source of a group's latents, which `choose` gives in sigmas of the prior, `[batch, values]`.

    It gets the posterior's means and log2 sigmas, relative to the prior, `[2, batch, values]`; None without posterior.
    """

    choose: Callable[[tf.Tensor | None], tf.Tensor]
    channels: np.ndarray  # the coded ones
    source: PosteriorSource | PriorSource  # of the prior and the posterior

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of the group whose layers and incoming state these are."""
        latent, outputs, batch = self.source.draw(layers, state), None, tf.shape(state)[0]
        prior, posterior = latent.prior, latent.posterior
        if posterior is not None:
            ratio = tf.math.log(posterior.scale / prior.scale) / math.log(2.0)
            both = tf.stack([(posterior.loc - prior.loc) / prior.scale, ratio])
            outputs = tf.reshape(tf.gather(both, self.channels, axis=-1), [2, batch, -1])
        chosen = tf.reshape(self.choose(outputs), [batch, *prior.loc.shape[1:3], len(self.channels)])
        to_all = np.eye(prior.loc.shape[3], dtype=np.float32)[self.channels]  # zeros for the other channels
        z = prior.loc + prior.scale * tf.tensordot(chosen, to_all, 1)
        return LatentSample(z, z, prior)


class Codec:
    """Encodes and decodes chunks of images, uint8 levels `[count, height, width, channels]`, and classes `[count]`.

    A model without classes disregards them. `bins` are of each group, see `LatentCoder`. A batch has an image for each
    `growth` images on the stack: the first are small, since they draw from bits that are there. Another machine's
    outputs of the network may be off by the `tolerance`, relative to 1 + their size.
    """

    def __init__(self, source: ModelWithWeights, bins: list[str], growth: int, tolerance: float):
        self._model, self._growth, self.shape = source.model, growth, source.model.config.image_shape
        self._folded = source.folded or folded_weights(source.model._stacks())
        # TensorFloat-32 of GPUs would move the outputs by more than any tolerance.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._latents = LatentCoder(bins, source.model.plan.latent_shapes(), tolerance)
        self._pixels = PixelCoder(source.model.likelihood, tolerance)
        numbers = math.prod(self.shape[:2]) * source.model.likelihood.num_parameters
        self._most_batch = min(_MOST_BATCH, _MOST_NUMBERS // numbers)
        labels, image = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, *self.shape], tf.uint8)
        latents = tf.TensorSpec([None, len(self._latents.exponents)], tf.float32)
        graph = functools.partial(tf.function, autograph=False)
        self._draw_parameters = graph(lambda labels, images: self._pass(labels, None, images)[0], [labels, image])
        self._parameters = graph(lambda labels, latents: self._pass(labels, latents)[0], [labels, latents])
        self._posteriors = graph(lambda *inputs: self._pass(*inputs)[1], [labels, latents, image])

    def encode(self, levels: np.ndarray, labels: np.ndarray) -> Encoded:
        """A chunk of images."""
        stack, coder = Stack(zlib.crc32(levels.tobytes())), self._latents
        for part in self._batches(len(levels)):
            drawn = []
            self._draw = functools.partial(coder.draw, stack, drawn)  # the pass calls it for each group, from the top
            parameters = self._draw_parameters(labels[part], levels[part])
            latents, marks = (np.concatenate(each, axis=-1) for each in zip(*drawn, strict=True))
            stack.mark_bits += stack.push(marks, coder.marks)
            self._pixels.push(stack, parameters, levels[part])
            stack.push(latents, *coder.prior)
        return Encoded(*stack.data(), stack.mark_bits, len(levels))

    def decode(self, data: bytes, labels: np.ndarray, extra_rows: int = 0) -> np.ndarray:
        """The levels of a chunk of images of these classes; ValueError where this machine's numbers differ too much.

        `extra_rows` go through the networks beside the rows of each batch, whose size need not be the encoder's.
        """
        stack, coder, levels = Stack(data=data), self._latents, np.zeros((len(labels), *self.shape), np.uint8)
        for part in reversed(self._batches(len(labels))):
            count = part.stop - part.start
            rows = np.arange(count + extra_rows) % count
            latents = stack.pop((count, len(coder.exponents)), *coder.prior)
            inputs = labels[part][rows], coder.whitened(latents)[rows]
            levels[part] = self._pixels.pop(stack, self._parameters(*inputs)[:count])
            marks = stack.pop((2, *latents.shape), coder.marks)
            outputs = self._posteriors(*inputs, levels[part][rows]).numpy()[:, :count]
            coder.give_back(stack, latents, outputs, marks)
        if stack.data() != Stack(zlib.crc32(levels.tobytes())).data():
            raise ValueError("this machine's numbers differ from the encoder's by more than the tolerance")
        return levels

    def _batches(self, count: int) -> list[slice]:
        ends = [0]
        while (done := ends[-1]) < count:
            ends.append(min(done + max(1, min(done // self._growth, self._most_batch)), count))
        return [slice(*each) for each in itertools.pairwise(ends)]

    def _pass(self, labels: tf.Tensor, latents: tf.Tensor | None = None, images: tf.Tensor | None = None) -> tuple:
        """The likelihood's parameters `[batch, height, width, parameters]`, and with levels of `images` the posteriors:
        whitened means and log2 sigmas `[2, batch, values]`. Without whitened latents `[batch, values]` the pass waits
        for `self._draw` on the host, group after group.
        """
        model, coder, posteriors = self._model, self._latents, []
        forward = FoldedPass(labels=labels if model.config.num_classes else None, folded=self._folded)
        origins = [PriorSource(0.0)] * len(coder.groups)
        if images is not None:
            pixels = tf.cast(images, tf.float32) / (2**model.config.num_bits - 1)
            origins = [PosteriorSource(feature, 0.0) for feature in model.bottom_up.features(pixels, forward)]

        def choose(group: slice, posterior: tf.Tensor | None) -> tf.Tensor:
            posteriors.append(posterior)
            if latents is not None:
                return latents[:, group]
            return tf.numpy_function(lambda outputs: self._draw(outputs, group), [posterior], tf.float32)

        rows = zip(coder.groups, coder.channels, origins, strict=True)
        sources = [WhitenedSource(functools.partial(choose, group), *each) for group, *each in rows]
        decoded = passes.top_down_pass(model, sources, tf.shape(labels)[0], forward)
        parameters = passes.real_pixels(decoded.parameters, *self.shape[:2])
        return parameters, None if images is None else tf.concat(posteriors, axis=-1)


def _settings(model, levels: np.ndarray, labels: np.ndarray, tolerance: float) -> dict[str, Any]:
    """The bins and the growth for images like the first; ValueError where the model has diverged."""
    images = levels[:_SAMPLED].astype(np.float32) / (2**model.config.num_bits - 1)
    settings = {"labels": labels[:_SAMPLED] if model.config.num_classes else None, "batch_size": 32}
    bits = float(np.mean(model.score(images, per_group=True, **settings).nelbo)) / math.log(2.0)
    check(math.isfinite(bits), "the model gives the first images no finite score: it has diverged in training")
    groups = model.infer(images, **settings)
    chosen = (bins_and_draws(each.kl.numpy(), (each.scale / each.prior_scale).numpy(), tolerance) for each in groups)
    bins, draws = zip(*chosen, strict=True)
    return {"tolerance": tolerance, "growth": max(1, math.ceil(sum(draws) / bits)), "bins": list(bins)}


def compress(
    source: ModelWithWeights,
    levels: np.ndarray,
    labels: np.ndarray | None = None,
    about: dict[str, Any] | None = None,
    chunk: int = 500,
    tolerance: float = 2.0**-17,
    verify: bool = True,
    progress: Callable[[Encoded], None] = lambda encoded: None,
) -> bytes:
    """A file of images, uint8 levels `[count, height, width, channels]`, and their classes, int32 `[count]`.

    `about` adds to the header (container.py). With `verify` each chunk is decoded. `progress` gets each chunk.
    """
    chunk = min(whole_number("chunk", chunk, 1, 2**16), max(1, LARGEST_CHUNK // levels[0].size), len(levels))
    # Up to here a mark is enough, whatever the inverse scales of the logistics (e^7 at most).
    tolerance = real_number("tolerance", tolerance, "must be above 0, and at most 2^-13", math.ulp(0.0), 2.0**-13)
    check(source.folded is None, "an export decompresses alone: compress by the run that it was made of")
    if source.model.config.num_classes:
        names = ", ".join(source.class_names[:10]) or "as the classes"
        fix = f"give labels, -1 is none (nvae-compress: a .npz file that has them, or folders called {names})"
        check(labels is not None, f"the images have no classes, and this model codes images given their class: {fix}")
        check_labels(labels, len(levels), source.model.config.num_classes)
    classes, chunks = np.zeros(len(levels), np.int32) if labels is None else labels, []
    settings = _settings(source.model, levels, classes, tolerance)
    codec = Codec(source, **settings)
    for first in range(0, len(levels), chunk):
        rows = levels[first : first + chunk], classes[first : first + chunk]
        encoded = codec.encode(*rows)
        if verify:
            fix = "); nothing is written: give a larger tolerance, at most 2^-13"
            with wrap_read_errors("a chunk can't be decoded (", fix):
                # Another size of batches has other last digits. The checksum compares the pixels.
                codec.decode(encoded.data, rows[1], extra_rows=1)
        chunks.append(encoded.data)
        progress(encoded)
    header = {"images": len(levels), "chunk": chunk, "shape": levels.shape[1:], "coder": _CODER} | settings
    header |= {} if labels is None else {"labels": labels.tolist()}
    return packed(header | (about or {}) | {"sha256": source.sha256}, chunks)


def decompress(source: ModelWithWeights, data: bytes, only: int | None = None) -> Iterator[np.ndarray]:
    """The levels of each chunk of a file in turn, or of one; ValueError for a damaged file, or another machine's."""
    header, chunks = unpacked(data)
    made = f"made with the weights of SHA-256 {header['sha256']}... ({header.get('model', 'no place is noted')})"
    check(header["sha256"] == source.sha256, f"{made}; those given are {source.sha256}...")
    check(header["coder"] == _CODER, f"made with {header['coder']}, and {_CODER} is installed")
    with wrap_read_errors("damaged (", ")"):
        codec = Codec(source, header["bins"], header["growth"], header["tolerance"])
        check(header["shape"] == [*codec.shape], "its images are not of the model's shape")
    labels = np.array(header["labels"], np.int32) if "labels" in header else np.zeros(header["images"], np.int32)

    def decoded(number: int) -> np.ndarray:
        with wrap_read_errors(f"chunk {number}: ", ""):
            return codec.decode(chunks[number], labels[number * header["chunk"] :][: header["chunk"]])

    numbers = range(len(chunks)) if only is None else [whole_number("chunk", only, 0, len(chunks) - 1)]
    with ThreadPoolExecutor(2) as threads:  # one codes while the networks of the other run
        for first in range(0, len(numbers), 2):  # a large set need not lie in memory
            yield from threads.map(decoded, numbers[first : first + 2])


def with_weights(model, class_names: tuple[str, ...] = ()) -> ModelWithWeights:
    """The model for a codec; ValueError for one that can't code images."""
    config, no_codes = model.config, "latents behind flows have no codes; train with model.num_flows=0"
    check(config.num_flows == 0, f"model.num_flows = {config.num_flows}: {no_codes}")
    coded = f"model.likelihood = {config.likelihood}: lossless files are of bernoulli and logistic_mixture"
    check(config.likelihood in ("bernoulli", "logistic_mixture"), coded)
    check(model.compute_dtype == "float32", "in half precision: lossless files need a model with dtype='float32'")
    check(config.num_bits <= 8, f"model.num_bits = {config.num_bits}: lossless files are of up to 8 bits")
    return ModelWithWeights(model, model._weights_sha256()[:20], class_names)
