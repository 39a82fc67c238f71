"""The signatures of the SavedModel: functions of named, batch-first tensors.

Where latents are drawn there is one seed a row, so that a row's result depends on that row alone: for 0 <= s < 2**31
the seed `s + i * 2**32` gives a row the draws of image i in `model.generate(count, seed=s)` and so on.

Two networks are traced, and every signature calls one of them: the top-down pass of `compose`, and the inference pass
of `encode`. A wrong row fails no other row, because TensorFlow Serving's batching gives one status to all requests of a
batch: the row's `valid` is false, its numbers are NaN, its pixels 0 and its files empty. Only a request without one
right row is refused.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from nvae_tf import objective
from nvae_tf.data.pipeline import eight_bit_pixels, files_of_pixels, images_of_files
from nvae_tf.layers import ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.latents import ComposedSource, GuidedSource, PriorSource, groups_of_flat, noise_per_image
from nvae_tf.models.outlier_scores import OutlierCalibration, OutlierParts, kl_map, outlier_scores
from nvae_tf.models.passes import Decoded, inference_pass, top_down_pass
from nvae_tf.models.reweighted_prior import PartlyReweightedSource, ReweightedPrior
from nvae_tf.serving.outputs import DEFAULT_SIGNATURE, PNG_SUFFIX

Tensors = dict[str, tf.Tensor]
# The inputs of each signature. The inputs of `_OPTIONAL` that the model has come after them.
_INPUTS = {
    "sample": ("seed", "temperature"),
    "encode": ("image", "seed"),
    "decode": ("latent",),
    "decode_upper_groups": ("latent", "num_groups", "seed", "temperature"),
    "reconstruct": ("image", "seed"),
    "score": ("image", "seed"),
    "compose": ("latent", "keep", "seed", "temperature"),
    "outlier_score": ("image",),
}
# Inputs that only some models have, and the signatures that take them; a `guidance` or `proposals` of 1 has no effect.
_OPTIONAL = {"label": tuple(_INPUTS), "guidance": ("compose",), "proposals": ("sample", "compose")}
_DTYPES = {"image_bytes": tf.string, "seed": tf.int64}
_DTYPES |= dict.fromkeys(("num_groups", "keep", "label", "proposals"), tf.int32)
SIGNATURES = (*_INPUTS, *(f"{name}{PNG_SUFFIX}" for name in _INPUTS))


class FlatLatentModel:
    """A model whose latents are one tensor `[batch, total]`; `forward` makes the `ForwardPass` of each call."""

    def __init__(self, model: NVAE, forward: Callable[[], ForwardPass] = ForwardPass):
        self.model, self._forward = model, forward
        self.latent_shapes = model.plan.latent_shapes()
        self.num_groups, self.total = len(self.latent_shapes), sum(map(math.prod, self.latent_shapes))

    def latent_layout(self) -> dict[str, Any]:
        """Returns the order, the groups' shapes and the length of a flat latent, for JSON."""
        order = "group after group, the top group first; each [height, width, channels], row-major"
        return {"order": order, "shapes": list(map(list, self.latent_shapes)), "total": self.total}

    def _specs(self, signature: str, names: Sequence[str], rows: int | None) -> list[tf.TensorSpec]:
        """Returns the specs `[rows, ...]` of the inputs of a signature; `compose` has a temperature for each group."""
        image, latent = self.model.config.image_shape, (self.total,)
        shapes = {"image": image, "latent": latent, "noise": latent, "keep": (self.num_groups,)}
        shapes["temperature"] = shapes["keep"] if signature == "compose" else ()
        return [tf.TensorSpec([rows, *shapes.get(name, ())], _DTYPES.get(name, tf.float32), name) for name in names]

    def _pass(self, label: tf.Tensor | None) -> ForwardPass:
        return dataclasses.replace(self._forward(), labels=label)

    def _decoded(self, sources: Sequence[Any], flat: tf.Tensor, label: tf.Tensor | None) -> Decoded:
        # A number of rows that is known adds no operation to the graph.
        return top_down_pass(self.model, sources, flat.shape[0] or tf.shape(flat)[0], self._pass(label))

    def _scores(self, image: tf.Tensor, elbo: objective.Elbo) -> Tensors:
        outputs = {"nats": elbo.nelbo, "kl_per_group": elbo.kl}
        if self.model.config.has_masses:
            outputs["bits_per_dim"] = objective.bits_per_dimension(elbo.nelbo, math.prod(image.shape[1:]))
        return outputs


class Signatures(FlatLatentModel):
    """The signatures of one model: functions of named tensors, with the batch first.

    H, W and C are the height, width and channels of images, `total` and `groups` the numbers of latent values and
    groups. Images are float32 `[batch, H, W, C]` in [0, 1], seeds int64 `[batch]`, temperatures float32 `[batch]`.
    Models with classes take int32 `label` `[batch]` too, -1 for none, and, if trained with `label_dropout`, `compose`
    float32 `guidance` `[batch]`. Where there is a reweighted prior, `sample` and `compose` take int32 `proposals`
    `[batch]`: 1 for the model's own prior, more for the reweighted one, whose number of proposals is fixed.

    `NAME_png` is NAME with `image_bytes` `[batch]`, the bytes of PNG files, wherever NAME has `image`: for REST, which
    sends bytes as base64. Models of more than 4 channels, or 8 bits, or of noisy images lack these signatures; the last
    take images of any finite values. `most_rows`: of a request.
    """

    def __init__(self, model: NVAE, forward: Callable[[], ForwardPass] = ForwardPass, most_rows: int = 2**31 - 1):
        super().__init__(model, forward)
        self._most_rows = most_rows
        reweighted, has_classes = model.reweighted_prior, model.config.num_classes > 0
        self._reweighted = reweighted if isinstance(reweighted, ReweightedPrior) else None
        self._has = {"label": has_classes, "guidance": has_classes and model.label_dropout > 0.0}
        self._has["proposals"] = self._reweighted is not None
        noise_scale = tf.TensorSpec([None], tf.float32, "noise_scale")
        self.compose_network = tf.function(self._composed, self.input_specs("compose"), autograph=False)
        self.infer_network = tf.function(self._inferred, [noise_scale, *self.input_specs("encode")], autograph=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of this model's signatures."""
        config = self.model.config
        takes_png = config.image_channels <= 4 and config.num_bits <= 8 and not config.is_denoising
        return SIGNATURES if takes_png else tuple(_INPUTS)

    def input_specs(self, name: str) -> list[tf.TensorSpec]:
        """Returns the inputs of the signature called `name`, in the order of its arguments."""
        base = name.removesuffix(PNG_SUFFIX)
        image = "image_bytes" if name.endswith(PNG_SUFFIX) else "image"
        names = [image if key == "image" else key for key in _INPUTS[base]]
        names += [key for key, takers in _OPTIONAL.items() if self._has[key] and base in takers]
        return self._specs(base, names, None)

    def function(self, name: str) -> Callable[..., Tensors]:
        """Returns the signature called `name`: a function from its inputs to its named outputs."""
        signature, specs = getattr(self, name.removesuffix(PNG_SUFFIX)), self.input_specs(name)

        def function(*values: tf.Tensor) -> Tensors:
            inputs = self._with_row_count_checks({spec.name: value for spec, value in zip(specs, values, strict=True)})
            inputs, reasons = self._validated(name, inputs)
            return _with_verdicts(signature(**inputs), reasons, name.endswith(PNG_SUFFIX))

        return function

    def write(self, folder: pathlib.Path, folded: Sequence[tf.Variable]) -> None:
        """Writes a SavedModel of all signatures, whose networks read the `folded` weights."""
        module = tf.Module()
        module.folded = list(folded)
        for name in self.names:
            setattr(module, name, tf.function(self.function(name), self.input_specs(name), autograph=False))
        if self._reweighted:
            module.prior = [weight.value for ratio in self._reweighted.ratios for weight in ratio.weights]
        signatures = {name: getattr(module, name) for name in self.names}
        signatures[DEFAULT_SIGNATURE] = signatures["sample"]
        # A server takes no gradients: tracing and storing the custom gradients would be for nothing.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with graphs_as_traced():
            tf.saved_model.save(module, folder, signatures, options)

    def sample(self, seed: tf.Tensor, temperature: tf.Tensor, **optional: tf.Tensor) -> Tensors:
        """Images from the prior; the temperature, above 0, multiplies every prior's sigma.

        Returns:
          `image` `[batch, H, W, C]`: the mean of the likelihood, whose own temperature is 1.
        """
        latent = tf.zeros([tf.shape(seed)[0], self.total])
        return self.decode_upper_groups(latent, tf.zeros_like(seed, tf.int32), seed, temperature, **optional)

    def encode(self, image: tf.Tensor, seed: tf.Tensor, **label: tf.Tensor) -> Tensors:
        """Latents drawn from the posterior of images.

        Returns:
          `latent` `[batch, total]`: the groups one after another, the top group first; `assets.extra/latents.json`
          has their shapes. `kl` `[batch, groups]`: the KL of posterior and prior of each group, in nats.
        """
        inferred = self._infer_with(image, seed, **label)
        return {name: inferred[name] for name in ("latent", "kl")}

    def decode(self, latent: tf.Tensor, **label: tf.Tensor) -> Tensors:
        """The images of `sample`, for latents `[batch, total]` from anywhere, laid out as `encode` gives them."""
        rows = tf.shape(latent)[:1]
        num_groups, seed = tf.fill(rows, self.num_groups), tf.zeros(rows, tf.int64)
        return self.decode_upper_groups(latent, num_groups, seed, tf.ones(rows), **label)

    def decode_upper_groups(
        self, latent: tf.Tensor, num_groups: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor, **optional: tf.Tensor
    ) -> Tensors:
        """Like `decode` with the latents of the upper groups, which hold the large structure; the others are drawn.

        Args:
          latent: `[batch, total]`; the values of groups that are drawn are not used.
          num_groups: int32 `[batch]`, from 0 to `groups`; the latents of this many groups, from the top, are used.
          seed: `[batch]`, of the groups that are drawn.
          temperature: `[batch]`, above 0, of their priors.
          **optional: `label`.
        """
        keep = tf.sequence_mask(num_groups, self.num_groups, tf.int32)
        temperature = tf.tile(temperature[:, tf.newaxis], [1, self.num_groups])
        return {"image": self.compose(latent, keep, seed, temperature, **optional)["image"]}

    def reconstruct(self, image: tf.Tensor, seed: tf.Tensor, **label: tf.Tensor) -> Tensors:
        """The images that `decode` gives for the latent of `encode` with the same inputs."""
        return {"image": self._infer_with(image, seed, **label)["image"]}

    def score(self, image: tf.Tensor, seed: tf.Tensor, **label: tf.Tensor) -> Tensors:
        """The negative evidence lower bound at the latents that `encode` draws with the same seed.

        Models of 1 bit take values 0 and 1 alone.

        Returns:
          `nats` `[batch]`: the bound; `kl_per_group` `[batch, groups]`: the KL's part of it, top group first; and,
          unless the likelihood is a registered density, `bits_per_dim` `[batch]`: `nats` in bits for each of the
          H * W * C values.
        """
        inferred = self._infer_with(image, seed, **label)
        return self._scores(image, objective.Elbo(inferred["reconstruction"], inferred["kl"]))

    def outlier_score(self, image: tf.Tensor, **label: tf.Tensor) -> Tensors:
        """How unlike the training images an image looks, from one pass at the posterior's means.

        It is `NVAE.outlier_score`, but that label -1 is no class, not the one whose `score` is lowest.

        Returns:
          `kl_sum` `[batch]`: the score, in nats; `kl` `[batch, groups]`: its parts, top group first; `kl_map`
          `[batch, H, W]`: where in the image the KLs of the largest scale are; `nelbo_at_mean` `[batch]`, no bound, for
          comparison. Of a calibrated model also `mahalanobis`, `kl_p_value` and `mahalanobis_p_value` `[batch]`.
        """
        inferred = self._infer_with(image, tf.zeros(tf.shape(image)[:1], tf.int64), 0.0, **label)
        calibration = self.model.outlier_calibration
        parts = OutlierParts(inferred["reconstruction"], inferred["kl"], inferred["kl_map"])
        scores = outlier_scores(parts, calibration if isinstance(calibration, OutlierCalibration) else None)
        outputs = scores._asdict() | {"kl_sum": scores.kl, "kl": parts.kl, "kl_map": parts.kl_map}
        del outputs["parts"]
        return {name: value for name, value in outputs.items() if value is not None}

    def compose(
        self, latent: tf.Tensor, keep: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor, **optional: tf.Tensor
    ) -> Tensors:
        """Images of which some groups are given and the others drawn from the prior, given the groups above.

        Args:
          latent: `[batch, total]`; of groups that are drawn any finite values.
          keep: int32 `[batch, groups]`, 1 where the group's latent is taken, 0 where it is drawn.
          seed: `[batch]`, of the groups that are drawn: a group's draws are the same whichever others are taken.
          temperature: `[batch, groups]`, above 0, of their priors.
          **optional: `label`, `guidance` and `proposals`.

        Returns:
          `image` `[batch, H, W, C]`, and `latent` `[batch, total]`: the latents taken and drawn.
        """
        given = dict(latent=latent, keep=keep, seed=seed, temperature=temperature) | optional
        specs, missing = self.input_specs("compose"), tf.ones_like(seed)
        image, latent = self.compose_network(*(given.get(s.name, tf.cast(missing, s.dtype)) for s in specs))
        return {"image": image, "latent": latent}

    def _infer_with(self, image: tf.Tensor, seed: tf.Tensor, noise_scale: float = 1.0, **label: tf.Tensor) -> Tensors:
        return self.infer_network(tf.fill(tf.shape(seed), noise_scale), image, seed, *label.values())

    def _composed(self, latent, keep, seed, temperature, *optional) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean images and latents of the top-down pass; of another pass where some rows are guided."""
        given = dict(zip((spec.name for spec in self.input_specs("compose")[4:]), optional, strict=True))
        temperatures = tf.unstack(temperature[:, :, tf.newaxis, tf.newaxis, tf.newaxis], axis=1)
        label, guidance = given.get("label"), given.get("guidance")
        words = tf.bitcast(seed, tf.int32)  # a seed of the model: two words, the low one first
        noise, keeps = noise_per_image(self.latent_shapes, words), tf.unstack(keep > 0, axis=1)
        groups = list(zip(groups_of_flat(latent, self.latent_shapes), keeps, noise, temperatures, strict=True))
        sources = [ComposedSource(group, keep, PriorSource(*drawn)) for group, keep, *drawn in groups]
        if self._reweighted:
            draws = functools.partial(self._reweighted.sources, words, temperatures, self.model.plan, label)
            is_reweighted, above, count = given["proposals"] > 1, [], len(self._reweighted.ratios)
            top = [PartlyReweightedSource(source, draws, is_reweighted, above) for source in sources[:count]]
            sources = [*top, *sources[count:]]
        decoded = self._decoded(sources, latent, label)
        plain = decoded.likelihood.mean(), decoded.flat_latents()
        if guidance is None:
            return plain

        def guided() -> tuple[tf.Tensor, tf.Tensor]:
            # The rows with their classes and then the same rows without, see `GuidedSource`.
            sources = []
            for group, keep, noise, temperature in groups:
                drawn = GuidedSource(noise, temperature, guidance[:, tf.newaxis, tf.newaxis, tf.newaxis])
                sources.append(ComposedSource(tf.tile(group, [2, 1, 1, 1]), tf.tile(keep, [2]), drawn))
            rows, both = tf.shape(latent)[0], self._pass(tf.concat([label, -tf.ones_like(label)], axis=0))
            decoded = top_down_pass(self.model, sources, 2 * rows, both, kept=rows)
            pairs = zip((decoded.likelihood.mean(), decoded.flat_latents()[:rows]), plain, strict=True)
            return tuple(tf.compat.v1.where(guidance != 1.0, *pair) for pair in pairs)

        return tf.cond(tf.reduce_any(guidance != 1.0), guided, lambda: plain)

    def _inferred(self, noise_scale, image, seed, label=None) -> Tensors:
        """Returns latents, the parts of the bound, the map of the KL, and mean images of the inference pass."""
        noise = noise_per_image(self.latent_shapes, tf.bitcast(seed, tf.int32))
        noise = [noise_scale[:, tf.newaxis, tf.newaxis, tf.newaxis] * eps for eps in noise]
        decoded = inference_pass(self.model, image, noise, self._pass(label))
        outputs = {"latent": decoded.flat_latents(), "image": decoded.likelihood.mean()}
        return outputs | decoded.elbo(image)._asdict() | {"kl_map": kl_map(self.model, decoded.latents)}

    def _with_row_count_checks(self, inputs: Tensors) -> Tensors:
        """Returns the inputs, tied to checks of their numbers of rows by control dependencies, which pruning keeps."""
        first, most = next(iter(inputs)), self._most_rows
        counts = {name: tf.shape(value)[0] for name, value in inputs.items()}
        rows, message = counts[first], f"{first}: a request must have 1 to {most} rows; this one has:"
        checks = [tf.debugging.Assert((rows >= 1) & (rows <= most), [message, rows])]
        for name, count in counts.items():
            message = f"{name}: there must be one for each row of {first}; counts:"
            checks.append(tf.debugging.Assert(count == rows, [message, count, rows]))
        with tf.control_dependencies(checks):
            return {name: tf.identity(value) for name, value in inputs.items()}

    def _validated(self, name: str, inputs: Tensors) -> tuple[Tensors, tf.Tensor]:
        """Returns the inputs, with wrong rows replaced, and what is wrong with each row `[batch]`, or an empty text."""
        config, groups = self.model.config, self.num_groups
        rules = {
            "image": (_is_in(0.0, 1.0), "must be finite and in [0, 1] (divide 8-bit values by 255)"),
            "latent": (tf.math.is_finite, "must be finite"),
            "temperature": (lambda x: tf.math.is_finite(x) & (x > 0.0), "must be finite and above 0"),
            "num_groups": (_is_in(0, groups), f"must be from 0 to {groups}"),
            "keep": (_is_in(0, 1), "must be 1 (taken) or 0 (drawn)"),
            "label": (_is_in(-1, config.num_classes - 1), f"must be below {config.num_classes}, or -1 for none"),
            "guidance": (tf.math.is_finite, "must be finite"),
            "proposals": (lambda x: x >= 1, "must be 1 (the model's own prior) or more (the reweighted prior)"),
        }
        if config.num_bits == 1 and name in ("score", "outlier_score"):
            rules["image"] = (lambda x: (x == 0.0) | (x == 1.0), "must be 0 or 1, as in the model's data of 1 bit")
        if config.is_denoising:
            rules["image"] = tf.math.is_finite, "must be finite"
        reasons, checked = tf.fill(tf.shape(next(iter(inputs.values())))[:1], ""), {}
        for key, value in inputs.items():
            if key == "image_bytes":
                key, (value, is_right) = "image", images_of_files(value, config)
                size = f"height {config.image_height} and width {config.image_width}"
                size += ", gray with alpha" if config.image_channels == 2 else ""
                reasons = _first_reasons(reasons, is_right, f"image_bytes: must be whole PNG files of {size}")
            elif key in rules:
                is_right, rule = rules[key]
                right = tf.reduce_all(is_right(value), axis=list(range(1, len(value.shape))), keepdims=True)
                reasons = _first_reasons(reasons, tf.reshape(right, [-1]), f"{key}: values {rule}")
                value = tf.where(right, value, tf.ones_like(value))
            checked[key] = value
        if "guidance" in inputs:
            guided = tf.not_equal(inputs["guidance"], 1.0)
            text = "guidance: it is toward a class; give a label"
            reasons = _first_reasons(reasons, ~guided | (inputs["label"] >= 0), text)
            if "proposals" in inputs:
                text = "proposals: the reweighted prior goes with no guidance"
                reasons = _first_reasons(reasons, ~guided | (inputs["proposals"] <= 1), text)
        return checked, reasons


@contextlib.contextmanager
def graphs_as_traced() -> Iterator[None]:
    """In this block TensorFlow does not rewrite graphs before it runs them, which takes longer than one run."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def _with_verdicts(outputs: Tensors, reasons: tf.Tensor, as_files: bool) -> Tensors:
    """Returns the outputs, blank for wrong rows, with `valid`, and pixels or files of `image`."""
    for value in outputs.values():
        finite = tf.reduce_all(tf.math.is_finite(value), axis=list(range(1, len(value.shape))))
        reasons = _first_reasons(reasons, finite, "the result is not finite; a temperature or a latent is too large")
    valid = tf.equal(reasons, "")
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_any(valid), [reasons[0]])]):
        valid = tf.identity(valid)

    def blank_if_wrong(value: tf.Tensor, blank: float) -> tf.Tensor:
        return tf.where(tf.reshape(valid, [-1] + [1] * (len(value.shape) - 1)), value, blank)

    given = {name: blank_if_wrong(value, math.nan) for name, value in outputs.items()}
    if "image" in outputs:
        pixels = eight_bit_pixels(blank_if_wrong(outputs["image"], 0.0))
        if as_files:
            del given["image"]
            given["image_bytes"] = tf.where(valid, files_of_pixels(pixels), "")
        else:
            given["image_uint8"] = pixels
    return given | {"valid": valid}


def _first_reasons(reasons: tf.Tensor, is_right: tf.Tensor, otherwise: str) -> tf.Tensor:
    """Returns what is wrong with each row: the reason known already, or `otherwise` where the row is not right."""
    return tf.where(is_right | tf.not_equal(reasons, ""), reasons, otherwise)


def _is_in(smallest: float, largest: float) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda value: (value >= smallest) & (value <= largest)  # false for NaN
