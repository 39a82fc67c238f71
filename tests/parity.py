"""Replays recorded reference files and compares every quantity: `python -m tests.parity [--scan] FILE.npz [...]`.

A file holds settings, weights under their published names, inputs, the random draws and what the published model gave
for them (channels first, float32). Prints one line a quantity with its largest error relative to the largest recorded
value and exits 1 if any is past its tolerance. Quantities that a file lacks are named. With --scan equal groups and
cells of the training pass are loops, as by `train.scan=on`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf import objective
from nvae_tf.config import TrainConfig
from nvae_tf.layers import ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.images import real_pixels
from nvae_tf.models.latents import PriorSource
from nvae_tf.models.passes import Decoded, inference_pass, top_down_pass
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.published.settings import model_config_from_published, objective_config_from_published
from nvae_tf.published.tensor_names import load_published_weights, published_array, published_tensors
from nvae_tf.training.strategy import configure_runtime

VALUE, NATS, GRADIENT, STEP = 1e-4, 1e-4, 1e-3, 1e-4
ITERATIONS = 10
# A gradient that is zero in theory may be this large against the file's median gradient.
ROUNDING_NOISE = 1e-4
# Rounding noise of a gradient against the largest one of its tensor.
GRADIENT_NOISE = 1e-5


class Comparison(NamedTuple):
    quantity: str
    error: float  # the largest one, relative to the largest recorded value
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


class Recorded:
    """A recorded file: arrays by key, and which keys have been used."""

    def __init__(self, path: str):
        with np.load(path) as file:
            self.arrays = dict(file.items())
        self.settings = json.loads(str(self.arrays["config_json"]))
        self.missing: list[str] = []

    def compare(self, key: str, value, tolerance: float) -> Iterator[Comparison]:
        """Compares with what is recorded under `key`, or notes that nothing is."""
        if key not in self.arrays:
            self.missing.append(key)
            return
        yield Comparison(key, relative_error(np.asarray(value), self.arrays[key]), tolerance)

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def draws(self, part: str) -> list[tf.Tensor] | None:
        """The standard-normal draws of every group in `[batch, height, width, channels]`, or None."""
        draws = self.group(f"{part}/eps/")
        if not draws:
            self.missing.append(f"{part}/eps")
            return None
        return [tf.constant(channels_last(draws[str(index)])) for index in range(len(draws))]


def relative_error(value: np.ndarray, recorded: np.ndarray, scale: float | None = None) -> float:
    """Largest absolute difference over the largest recorded magnitude (or `scale`)."""
    if value.shape != recorded.shape:
        return float("inf")
    largest = np.max(np.abs(recorded)) if scale is None else scale
    difference = np.max(np.abs(value.astype(np.float64) - recorded))
    return float(difference / largest) if largest > 0.0 else float(difference)


def channels_last(array: np.ndarray) -> np.ndarray:
    """`[batch, channels, height, width]` -> `[batch, height, width, channels]`."""
    return array.transpose(0, 2, 3, 1)


def channels_first(tensor) -> np.ndarray:
    return np.asarray(tensor).transpose(0, 3, 1, 2)


def replay(path: str, scan: bool = False) -> tuple[list[Comparison], list[str]]:
    recorded = Recorded(path)
    model = NVAE(model_config_from_published(recorded.settings), objective_config_from_published(recorded.settings))
    load_published_weights(model, recorded.group("state/"))
    model.scan = scan
    comparisons = [*_evaluation(model, recorded), *_generation(model, recorded), *_training(model, recorded)]
    return comparisons, recorded.missing


def _reconstruction(model: NVAE, decoded: Decoded, framed: tf.Tensor) -> tf.Tensor:
    return -decoded.likelihood.log_prob(real_pixels(framed, model.config.image_height, model.config.image_width))


def _frame_mean(model: NVAE, parameters: tf.Tensor) -> np.ndarray:
    """The likelihood's mean over the whole frame, padding included, as it is recorded."""
    return channels_first(model.likelihood.distribution(parameters).mean())


def _evaluation(model: NVAE, recorded: Recorded) -> Iterator[Comparison]:
    images, draws = tf.constant(channels_last(recorded.arrays["x"])), recorded.draws("eval")
    if draws is None:
        return
    decoded = inference_pass(model, images, draws)
    reconstruction = _reconstruction(model, decoded, images)
    log_q, log_p = objective.log_posterior_and_prior(decoded.latents)
    yield from recorded.compare("eval/logits", channels_first(decoded.parameters), VALUE)
    yield from recorded.compare("eval/mean", _frame_mean(model, decoded.parameters), VALUE)
    yield from recorded.compare("eval/recon_loss", reconstruction, NATS)
    yield from recorded.compare("eval/kl_per_group", objective.kl_per_group(decoded.latents), NATS)
    for index, per_channel in enumerate(tf.reduce_mean(objective.kl_per_channel(decoded.latents), axis=0)):
        yield from recorded.compare(f"eval/kl_diag/{index}", per_channel, NATS)
    yield from recorded.compare("eval/log_q", log_q, NATS)
    yield from recorded.compare("eval/log_p", log_p, NATS)
    yield from recorded.compare("eval/log_iw", log_p - log_q - reconstruction, NATS)
    if "eval/mean" in recorded.arrays:
        # The reconstruction once more, from the latents alone; over the real pixels.
        mean = channels_last(recorded.arrays["eval/mean"])
        expected = real_pixels(mean, model.config.image_height, model.config.image_width)
        images = model.decode([latent.z for latent in decoded.latents])
        yield Comparison("eval/mean (decoded latents)", relative_error(images.numpy(), expected), VALUE)


def _generation(model: NVAE, recorded: Recorded) -> Iterator[Comparison]:
    draws = recorded.draws("sample")
    if draws is None:
        return
    temperature = float(recorded.arrays["sample/temperature"])
    sources = [PriorSource(eps, temperature) for eps in draws]
    decoded = top_down_pass(model, sources, draws[0].shape[0])
    yield from recorded.compare("sample/logits", channels_first(decoded.parameters), VALUE)
    yield from recorded.compare("sample/mean", _frame_mean(model, decoded.parameters), VALUE)


def _training(model: NVAE, recorded: Recorded) -> Iterator[Comparison]:
    images, draws = tf.constant(channels_last(recorded.arrays["x"])), recorded.draws("train")
    if draws is None:
        return
    beta, weight = recorded.arrays["train/kl_coeff"], recorded.arrays["train/regularisation_coeff"]
    scales = objective.balancing_scales(model.plan)
    updated = []
    _start_from_singular_vectors(model)

    @tf.function(autograph=False)
    def training_pass():
        forward = ForwardPass(training=True, scanned=model.scan)
        with tf.GradientTape() as tape:
            decoded = inference_pass(model, images, draws, forward)
            elbo = objective.Elbo(_reconstruction(model, decoded, images), objective.kl_per_group(decoded.latents))
            norms = model.spectral_regularizer.norms(forward)
            spectral = tf.add_n([tf.reduce_sum(norm) for norm in norms])
            norm_loss = objective.batch_norm_loss(model.batch_norms) if model.batch_norms else tf.zeros([])
            loss = objective.training_loss(elbo, beta, weight * (spectral + norm_loss), model.objective, model.plan)
            group_weights = objective.elbo.group_weights(elbo.kl, beta, scales)
        updated[:], new_values = zip(*forward.updates(), strict=True)
        gradients = tape.gradient(loss, model.trainable_weights)
        return decoded.parameters, elbo, group_weights, spectral, norm_loss, loss, gradients, list(new_values)

    parameters, elbo, group_weights, spectral, norm_loss, loss, gradients, updates = training_pass()
    yield from recorded.compare("train/logits", channels_first(parameters), VALUE)
    yield from recorded.compare("train/recon_loss", elbo.reconstruction, NATS)
    yield from recorded.compare("train/kl_per_group", elbo.kl, NATS)
    yield from recorded.compare("train/kl_alpha", np.float32(scales), VALUE)
    yield from recorded.compare("train/kl_group_coeffs", group_weights / beta, VALUE)
    yield from recorded.compare("train/balanced_kl", tf.reduce_sum(group_weights * elbo.kl, axis=1), NATS)
    yield from recorded.compare("train/spectral_loss_exact", spectral, VALUE)
    yield from recorded.compare("train/bn_loss", norm_loss, VALUE)
    yield from recorded.compare("train/loss", loss, NATS)
    yield from _gradients(model, recorded, gradients)
    for variable, value in zip(updated, updates, strict=True):
        variable.assign(value)
    yield from _weights(model, recorded, "train/after_forward/")
    yield from _optimizer_step(model, recorded, gradients)


def _optimizer_step(model: NVAE, recorded: Recorded, gradients: list[tf.Tensor]) -> Iterator[Comparison]:
    """One step from the recorded gradients; from the model's own, less exact ones where only norms are recorded."""
    rate = float(recorded.arrays["train/learning_rate"])
    optimizer = NVAEAdamax(learning_rate=rate)
    allowances = {}
    if exact := recorded.group("train/grad/"):
        gradients = published_gradients(model, exact)
    else:
        # Where a gradient is not far above its rounding noise, its step is not exact either: the step is
        # rate * g / (|g| + epsilon).
        typical = float(np.median(recorded.arrays.get("train/grad_norms", 0.0)))
        for variable, gradient in zip(model.trainable_weights, gradients, strict=True):
            size = np.abs(gradient.numpy())
            noise = GRADIENT_NOISE * max(float(np.max(size)), typical)
            allowances[id(variable)] = rate * np.minimum(1.0, noise / (size + optimizer.epsilon))
    optimizer.apply(gradients, model.trainable_weights)
    yield from _weights(model, recorded, "train/after_step/", allowances)


def published_gradients(model: NVAE, recorded: Mapping[str, np.ndarray]) -> list[tf.Tensor]:
    gradients = {id(variable): np.zeros(variable.shape, np.float32) for variable in model.trainable_weights}
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in recorded), None)
        if name is not None and id(tensor.variable) in gradients:
            whole = gradients[id(tensor.variable)]
            (whole if tensor.index is None else whole[tensor.index])[...] = tensor.from_published(recorded[name])
    return [tf.constant(gradient) for gradient in gradients.values()]


def _start_from_singular_vectors(model: NVAE) -> None:
    """Puts the power iterations where they would end: two nearly equal singular values take thousands of them."""
    regularizer = model.spectral_regularizer
    regularizer.FIRST_ITERATIONS = ITERATIONS
    for stack, vectors in zip(model.convolutions, regularizer.vectors, strict=True):
        kernels = stack.effective_kernels(ForwardPass()).numpy().astype(np.float64)
        matrices = kernels.reshape(len(kernels), -1, kernels.shape[-1])
        vectors.assign(np.linalg.svd(matrices, full_matrices=False).Vh[:, 0])


def _gradients(model: NVAE, recorded: Recorded, gradients: list[tf.Tensor]) -> Iterator[Comparison]:
    """Each tensor's gradient against the recorded one, or its norm where only norms are recorded."""
    expected = recorded.group("train/grad/")
    reduced = not expected and "train/grad_norms" in recorded.arrays
    if reduced:
        names = [str(name) for name in recorded.arrays["train/grad_norm_names"]]
        expected = dict(zip(names, recorded.arrays["train/grad_norms"], strict=True))
    if not expected:
        recorded.missing.append("train/grad")
        return
    by_variable = dict(zip(map(id, model.trainable_weights), gradients, strict=True))
    median = float(np.median([np.max(np.abs(value)) for value in expected.values()]))
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in expected), None)
        if name is None or id(tensor.variable) not in by_variable:
            continue
        value = published_array(tensor, by_variable[id(tensor.variable)].numpy())
        value = np.asarray(np.linalg.norm(value.astype(np.float64))) if reduced else value
        target = np.asarray(expected[name])
        if tensor.canceled or not np.any(target):
            error = relative_error(value, target, median)
            yield Comparison(f"train/grad/{name} (zero in theory)", error, ROUNDING_NOISE)
        else:
            yield Comparison(f"train/grad/{name}", relative_error(value, target), GRADIENT)


def _weights(model: NVAE, recorded: Recorded, prefix: str, allowances=None) -> Iterator[Comparison]:
    """The model's variables against recorded ones; `allowances` are errors that are allowed besides, by variable."""
    expected = recorded.group(prefix)
    if not expected:
        recorded.missing.append(prefix.rstrip("/"))
    for tensor in published_tensors(model):
        for name in tensor.names:
            if name in expected:
                value = published_array(tensor, tensor.variable.numpy())
                target = expected[name]
                if allowances and id(tensor.variable) in allowances:
                    allowed = published_array(tensor, allowances[id(tensor.variable)])
                    value = np.where(np.abs(value - target) <= allowed, target, value)
                yield Comparison(prefix + name, relative_error(value, target), STEP)


def main(paths: list[str]) -> int:
    scan = paths[:1] == ["--scan"]
    paths = paths[scan:]
    if not paths:
        print(__doc__)
        return 2
    failures = 0
    for path in paths:
        comparisons, missing = replay(path, scan)
        failed = [comparison for comparison in comparisons if not comparison.passed]
        for comparison in comparisons:
            verdict = "ok" if comparison.passed else "FAILED"
            print(f"{verdict:6} {comparison.error:9.2e} <= {comparison.tolerance:.0e}  {comparison.quantity}")
        for key in missing:
            print(f"absent from the file: {key}")
        print(f"{path}: {len(comparisons)} quantities, {len(failed)} past their tolerance\n")
        failures += len(failed)
    return 1 if failures else 0


if __name__ == "__main__":
    # As train.main and the tests: without grappler's rewriting on CPUs.
    configure_runtime(TrainConfig(), replica_count=1)
    sys.exit(main(sys.argv[1:]))
