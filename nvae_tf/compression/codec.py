"""A model as a lossless codec: bits-back coding of chunks of images (Townsend et al. 2019, arXiv 1901.04866).

For each batch the encoder draws the latents of group after group from the posteriors, with bits that lie on a stack. It
puts the pixels on the stack, and the latents with their priors, from the last group up. The decoder takes latents and
pixels from the stack and gives the bits of the draws back: below lie the batches before.
"""

import importlib.metadata
import io
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.compression import container
from nvae_tf.compression.latent_coder import REACH, CodedSource, GroupCoder, bins_of_channels
from nvae_tf.compression.pixel_coder import PixelCoder
from nvae_tf.compression.rounding import Rounder
from nvae_tf.config import whole_number
from nvae_tf.errors import require, wrap_read_errors
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.layers.normalization import FoldedWeights
from nvae_tf.models import passes
from nvae_tf.models.images import check_images
from nvae_tf.models.latents import check_labels
from nvae_tf.models.nvae import NVAE
from nvae_tf.runs.companions import weights_sha256
from nvae_tf.runs.loading import load, load_run
from nvae_tf.serving.saved_model import load_export

_SAMPLED = 128  # images by which the bins of latents are chosen
_MOST_BATCH, _NUMBERS_OF_BATCH = 128, 2**24
_MOST_AT_ONCE = 2**30  # values of the images of `decompress`
_LEVEL_TOLERANCE = 1e-3


class Settings(NamedTuple):
    """What the encoder decides about a stream and the decoder must know."""

    bins: list[str]  # of each group, see `GroupCoder`
    growth: int  # how many images are on the stack for each image of a batch
    batch: int  # the most images of a batch
    tolerance: float

    def batches(self, count: int) -> list[tuple[int, int]]:
        """The first image and the size of each batch of a chunk. The first batches are small: they draw few bits."""
        batches, done = [], 0
        while done < count:
            batches.append((done, min(max(1, done // self.growth), self.batch, count - done)))
            done += batches[-1][1]
        return batches


class Encoded(NamedTuple):
    """A chunk of images, and parts of its size."""

    data: bytes  # the CRC-32 of the levels, the length of `sides` (3 bytes), `sides` (rounding.py), the stack
    sides: int  # bytes of the list of values near a tie
    first: int  # bits of the first image, which pays for its latents


class Codec:
    """Encodes and decodes chunks of images, uint8 levels `[count, height, width, channels]`.

    Args:
      model: the `NVAE`, whose weights are read now; ValueError where it has flows or a likelihood without masses.
      folded: its weights where they are not in the model, see `nvae_tf.serving.saved_model.load_export`.
      sha256: that of the weights, where they are not in the model.
    """

    def __init__(self, model: NVAE, folded: FoldedWeights | None = None, sha256: str | None = None):
        config = model.config
        if config.num_flows:
            fault = "the density of a latent behind flows can't be coded on a grid; train with model.num_flows=0"
            raise ValueError(f"model.num_flows = {config.num_flows}: {fault}")
        self.model, self.highest = model, 2**config.num_bits - 1
        self.shape = (config.image_height, config.image_width, config.image_channels)
        self.sha256 = sha256 or weights_sha256(model)
        self._pixels = PixelCoder(model.likelihood, *self.shape[:2])
        self._stack = require("constriction", "compress").stream.stack.AnsCoder
        self._folded = folded_weights(model._stacks()) if folded is None else folded
        self._graphs: dict[Any, Callable[..., tf.Tensor]] = {}
        # What decides the latents of the pass that runs, and its error: TensorFlow passes on no more than a text.
        self._decide, self._failure = None, None

    def settings(self, levels: np.ndarray, labels: np.ndarray | None, tolerance: float, chunk: int) -> Settings:
        """The settings for images like the first of `levels`."""
        images, labels = self._as_images(levels[:_SAMPLED]), None if labels is None else labels[:_SAMPLED]
        nelbo = float(np.mean(self.model.score(images, labels=labels, per_group=True, batch_size=32).nelbo))
        bins, drawn, coded = [], 0.0, 0
        groups = self.model.infer(images, labels=labels, batch_size=32)
        for group, shape in zip(groups, self.model.plan.latent_shapes(), strict=True):
            kl, ratios = np.mean(np.sum(group.kl, axis=(1, 2)), axis=0), (group.scale / group.prior_scale).numpy()
            bins.append(bins_of_channels(kl, ratios, chunk))
            coder = GroupCoder(bins[-1], shape)
            drawn, coded = drawn + coder.bits_of_draw(ratios), coded + coder.count
        # With a margin: from an empty stack come latents that are no draws, and cost their bits.
        growth = max(1, math.ceil(1.2 * drawn * math.log(2.0) / nelbo))
        # Parameters of pixels, and tables of frequencies.
        numbers = math.prod(self.shape[:2]) * self.model.likelihood.num_parameters + (2 * REACH + 1) * coded
        return Settings(bins, growth, min(_MOST_BATCH, max(1, _NUMBERS_OF_BATCH // numbers)), tolerance)

    def encode(self, levels: np.ndarray, labels: np.ndarray | None, settings: Settings) -> Encoded:
        """A chunk of images and of their classes."""
        stack, rounder, first_bits, (coders, places, size) = self._stack(), Rounder(), 0, self._layout(settings)
        for first, batch in settings.batches(len(levels)):
            latents = {}

            def draw(group: int, *outputs, first=first, batch=batch, latents=latents):
                place = first * size + batch * places[group]
                posterior = coders[group].posterior(rounder, place, *outputs, settings.tolerance)
                latents[group] = coders[group].pop_posterior(stack, posterior)
                return coders[group].whitened(latents[group])

            part, pixels = slice(first, first + batch), levels[first : first + batch]
            parameters = self._run(draw, coders, batch, labels if labels is None else labels[part], pixels)
            place = first * size + batch * places[-1]
            self._pixels.push(stack, rounder, place, parameters, pixels, settings.tolerance)
            for group in reversed(range(len(coders))):
                coders[group].push_prior(stack, latents[group])
            first_bits = first_bits or stack.num_valid_bits()
        sides, words = rounder.sides(), stack.get_compressed().astype("<u4").tobytes()
        start = zlib.crc32(levels.tobytes()).to_bytes(4, "little") + len(sides).to_bytes(3, "little")
        # The last word is not zero: its zero bytes need not be stored.
        return Encoded(start + sides + words.rstrip(b"\0"), len(sides), first_bits)

    def decode(
        self, data: bytes, count: int, labels: np.ndarray | None, settings: Settings, extra_rows: int = 0
    ) -> np.ndarray:
        """The levels of a chunk of `count` images; ValueError where it is damaged, or this machine's numbers differ.

        `extra_rows` go through the networks beside those of each batch, whose size need not be that of the encoder.
        """
        levels, (coders, places, size) = np.zeros((count, *self.shape), np.uint8), self._layout(settings)
        end = 7 + int.from_bytes(data[4:7], "little")
        words = np.frombuffer(data[end:] + bytes(-len(data[end:]) % 4), "<u4").astype(np.uint32)
        stack, rounder = self._stack(words), Rounder(data[7:end])
        for first, batch in reversed(settings.batches(count)):
            part, latents, posteriors = slice(first, first + batch), {}, {}

            def padded(rows):
                return np.pad(rows, [(0, extra_rows), *[(0, 0)] * (rows.ndim - 1)])

            def take(group: int, batch=batch, latents=latents):
                latents[group] = coders[group].pop_prior(stack, batch)
                return padded(coders[group].whitened(latents[group]))

            def compare(group: int, *outputs, first=first, batch=batch, latents=latents, posteriors=posteriors):
                place, outputs = first * size + batch * places[group], [each[:batch] for each in outputs]
                posteriors[group] = coders[group].posterior(rounder, place, *outputs, settings.tolerance)
                return padded(coders[group].whitened(latents[group]))

            classes = labels if labels is None else padded(labels[part])
            parameters = self._run(take, coders, batch + extra_rows, classes)[:batch]
            levels[part] = self._pixels.pop(stack, rounder, first * size + batch * places[-1], parameters)
            self._run(compare, coders, batch + extra_rows, classes, padded(levels[part]))
            for group in reversed(range(len(coders))):
                coders[group].push_posterior(stack, latents[group], posteriors[group])
        if not stack.is_empty() or zlib.crc32(levels.tobytes()) != int.from_bytes(data[:4], "little"):
            raise ValueError("its checksum does not match what was decoded")
        return levels

    def _layout(self, settings: Settings) -> tuple[list[GroupCoder], list[int], int]:
        """The coders of the groups, where the values of each and of the pixels begin, and the values of an image."""
        shapes = self.model.plan.latent_shapes()
        coders = [GroupCoder(bins, shape) for bins, shape in zip(settings.bins, shapes, strict=True)]
        places = np.cumsum([0, *(2 * coder.count for coder in coders), self._pixels.count]).tolist()
        return coders, places[:-1], places[-1]

    def _run(self, decide: Callable[..., np.ndarray], coders, batch: int, labels, levels=None) -> tf.Tensor:
        """The likelihood's parameters `[batch, height, width, parameters]` of latents that `decide` returns.

        It is called with the number of each group in turn; with `levels` of images also with the group's posterior.
        """
        key = levels is None, labels is None, *(coder.channels.tobytes() for coder in coders)
        if key not in self._graphs:
            self._graphs[key] = self._traced(coders, levels is not None, labels is not None)
        inputs = [] if levels is None else [self._as_images(levels)]
        self._decide, self._failure = decide, None
        try:
            return self._graphs[key](tf.constant(batch), *inputs, *([] if labels is None else [labels]))
        except tf.errors.OpError as error:
            raise (self._failure or error) from None

    def _traced(self, coders: list[GroupCoder], has_images: bool, has_labels: bool) -> Callable[..., tf.Tensor]:
        """A graph of one pass, for any batch size."""

        def ask(group: int, *outputs):
            try:
                return self._decide(group, *outputs)
            except Exception as error:
                self._failure = error
                raise

        def run(batch, *inputs):
            forward = FoldedPass(labels=inputs[-1] if has_labels else None, folded=self._folded)
            features = self.model.bottom_up.features(inputs[0], forward) if has_images else [None] * len(coders)
            sources = [
                CodedSource(lambda *outputs, group=group: ask(group, *outputs), coder.channels, feature)
                for group, (coder, feature) in enumerate(zip(coders, features, strict=True))
            ]
            decoded = passes.top_down_pass(self.model, sources, batch, forward)
            return passes.real_pixels(decoded.parameters, *self.shape[:2])

        specs = [tf.TensorSpec([None, *self.shape], tf.float32)] * has_images
        specs += [tf.TensorSpec([None], tf.int32)] * has_labels
        return tf.function(run, input_signature=[tf.TensorSpec([], tf.int32), *specs], autograph=False)

    def _as_images(self, levels: np.ndarray) -> np.ndarray:
        return levels.astype(np.float32) / np.float32(self.highest)


def write_stream(
    file: BinaryIO,
    codec: Codec,
    levels: np.ndarray,
    labels: np.ndarray | None,
    about: dict[str, Any],
    index: dict[str, Any],
    chunk: int,
    tolerance: float,
    verify: bool,
    progress: Callable[[int, Encoded], object] = lambda count, chunk: None,
) -> None:
    """Writes the file of images, uint8 levels `[count, height, width, channels]`, and their classes, int32 `[count]`.

    `about` and `index` add to the header and the index (container.py). With `verify` each chunk is decoded before it is
    written. `progress` gets the number of images of each chunk, and the chunk.
    """
    most = min(2**16, container.LARGEST_CHUNK // math.prod(codec.shape))
    chunk = min(whole_number("chunk", chunk, 1, most), len(levels))
    if not codec.model.config.num_classes:
        labels = None
    elif labels is None:
        raise ValueError("the images have no classes, and this model codes images given their class: give labels")
    if not 0.0 < tolerance < 0.1:
        raise ValueError(f"tolerance = {tolerance}: must be above 0 and below 0.1")
    settings = codec.settings(levels, labels, tolerance, chunk)

    def chunks() -> Iterator[bytes]:
        for first in range(0, len(levels), chunk):
            part = levels[first : first + chunk]
            classes = None if labels is None else labels[first : first + chunk]
            encoded = codec.encode(part, classes, settings)
            if verify:
                with wrap_read_errors("a chunk can't be decoded (", "); nothing is written: give a larger tolerance"):
                    # Another size of batches has other last digits. The checksum compares the pixels.
                    codec.decode(encoded.data, len(part), classes, settings, extra_rows=1)
            progress(len(part), encoded)
            yield encoded.data

    coder = f"constriction {importlib.metadata.version('constriction').rpartition('.')[0]}"
    header = {"images": len(levels), "chunk": chunk, "shape": codec.shape, "coder": coder, "sha256": codec.sha256}
    container.write(file, header | settings._asdict() | about, chunks(), index)


def read_chunk(file: BinaryIO, archive: container.Archive, codec: Codec, number: int, extra_rows=0) -> np.ndarray:
    """The levels of chunk `number` of a file; ValueError names the chunk where it can't be decoded."""
    header, (start, end) = archive.header, archive.chunks[number]
    first = number * header["chunk"]
    part, labels = slice(first, min(first + header["chunk"], header["images"])), None
    if codec.model.config.num_classes:
        labels = np.array(archive.index["labels"][part], np.int32)
    file.seek(start)
    settings = Settings(*(header[name] for name in Settings._fields))
    with wrap_read_errors(f"chunk {number}: ", "; it is damaged, or this machine can't decode it"):
        return codec.decode(file.read(end - start), part.stop - part.start, labels, settings, extra_rows)


def check_fits(archive: container.Archive, codec: Codec) -> None:
    """ValueError where a file is of another model than the codec's."""
    header, plan = archive.header, codec.model.plan
    if header["sha256"] != codec.sha256:
        made = f"{header['sha256'][:16]}... ({header.get('model', 'no place is noted')})"
        raise ValueError(f"made with the weights of SHA-256 {made}; those given are {codec.sha256[:16]}...")
    has_groups = [len(bins) for bins in header["bins"]] == [plan.num_latent_per_group] * plan.num_groups
    has_labels = "labels" in archive.index or not codec.model.config.num_classes
    if not (has_groups and has_labels and tuple(header["shape"]) == codec.shape):
        raise ValueError("its header does not fit the model: it is damaged")


def model_at(place: str) -> tuple[Codec, tuple[str, ...]]:
    """The model of a run folder, a bundled one, "hf://user/repo", a .keras file, or one version of a SavedModel.

    With it come the names of its classes, where they are noted. Raises what `nvae_tf.load` raises; ValueError for a
    SavedModel that can't decode.
    """
    folder = pathlib.Path(place)
    if (folder / "saved_model.pb").is_file():
        _, model, folded, source = load_export(folder)
        if source["weights"] != "float32" or "weights_sha256" not in source:
            raise ValueError(f"{folder}: only exports by this version with weights=float32 decode; export it again")
        return Codec(model, folded, source["weights_sha256"]), ()
    if folder.suffix == ".keras":
        return Codec(load(place)), ()
    run = load_run(place)
    return Codec(run.model), run.class_names


def compress(model: NVAE, images: Any, labels: Any, **settings: Any) -> bytes:
    """What `NVAE.compress` does; the settings are those of `write_stream`."""
    codec, file = Codec(model), io.BytesIO()
    scaled = check_images(images, model.config, scored=True).numpy() * codec.highest
    levels = np.rint(scaled).astype(np.uint8)
    if (np.abs(scaled - levels) > _LEVEL_TOLERANCE * codec.highest).any():
        raise ValueError(f"images have values between the {codec.highest + 1} levels of the model: they would be lost")
    labels = check_labels(labels, len(levels), model.config.num_classes)
    labels = labels if labels is None else labels.numpy()
    write_stream(file, codec, levels, labels, {}, {} if labels is None else {"labels": labels.tolist()}, **settings)
    return file.getvalue()


def decompress(model: NVAE, data: bytes) -> np.ndarray:
    """What `NVAE.decompress` does."""
    codec, file = Codec(model), io.BytesIO(data)
    archive = container.read(file)
    check_fits(archive, codec)
    if (size := archive.header["images"] * math.prod(codec.shape)) > _MOST_AT_ONCE:
        raise ValueError(f"its images have {size:,} values, more than are decoded at once: use nvae-decompress")
    levels = [read_chunk(file, archive, codec, number) for number in range(len(archive.chunks))]
    return codec._as_images(np.concatenate(levels))
