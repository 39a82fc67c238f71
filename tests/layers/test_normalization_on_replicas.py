import numpy as np
import pytest

from tests.command_fixtures import output_of

# A process has one set of devices.
STEP = """
import sys

import numpy as np
import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from nvae_tf.layers import ForwardPass, StackedBatchNormalization
from nvae_tf.models.training_step import sum_over_microbatches
from nvae_tf.replicas import divided, joined

given = np.load(sys.argv[1])
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = StackedBatchNormalization(1, given["images"].shape[-1])


def step(images, upstream, parts):
    size = images.shape[0] // parts

    def part(index):
        some, target = (tf.slice(tensor, [index * size, 0, 0, 0], [size, -1, -1, -1]) for tensor in (images, upstream))
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            tape.watch(some)
            outputs = layer.single(some, forward)
        of_images, *of_weights = tape.gradient(outputs, [some, *layer.trainable_weights], target)
        place = tf.reshape(tf.one_hot(index, parts), (parts, 1, 1, 1, 1))
        return [place * outputs, place * of_images, *of_weights, *(value / parts for _, value in forward.updates)]

    placed = [tf.zeros((parts, size, *images.shape[1:]))] * 2
    *placed, of_gamma, of_beta, mean, variance = sum_over_microbatches(part, parts, [*placed, *layer.weights])
    return *(tf.reshape(value, images.shape) for value in placed), of_gamma, of_beta, mean, variance


@tf.function(autograph=False)
def on_replicas(parts):
    images, upstream = divided(strategy, (tf.constant(given["images"]), tf.constant(given["upstream"])))
    return strategy.run(step, args=(images, upstream, parts))


names = "outputs", "of_images", "of_gamma", "of_beta", "mean", "variance"
for parts in (1, 2):
    found = zip(names, joined(strategy, on_replicas(parts)), strict=True)
    np.savez(sys.argv[2] + f"/{parts}.npz", **{name: value.numpy() for name, value in found})
"""


def reference(images, upstream):
    """Outputs, gradients of images, gamma (1) and beta (0), mean and unbiased variance of one batch."""
    axes = (0, 1, 2)
    size = images[..., 0].size
    mean, variance = images.mean(axes), images.var(axes)
    outputs = (images - mean) / np.sqrt(variance + 1e-5)
    of_gamma, of_beta = (upstream * outputs).sum(axes), upstream.sum(axes)
    of_images = (upstream - of_beta / size - outputs * of_gamma / size) / np.sqrt(variance + 1e-5)
    return outputs, of_images, of_gamma, of_beta, mean, variance * size / (size - 1)


@pytest.mark.slow
def test_means_of_a_thousand_deviations(tmp_path):
    generator = np.random.default_rng(5)
    channels = 6
    # Images differ as a whole too, so that the means of replicas and parts are not the same.
    images = generator.normal(size=(16, 8, 8, channels)) + generator.normal(size=(16, 1, 1, channels))
    images[:8] += 0.5
    images = np.float32(images + 1000.0 * images.std((0, 1, 2)) * generator.choice([-1.0, 1.0], channels))
    upstream = np.float32(generator.normal(size=images.shape) + images - images.mean((0, 1, 2)))
    np.savez(tmp_path / "step.npz", images=images, upstream=upstream)
    output_of(["-c", STEP, tmp_path / "step.npz", tmp_path])
    # The batch as a whole, and accumulated of two microbatches.
    for parts in (1, 2):
        assert_is_that_of_the_parts(np.load(tmp_path / f"{parts}.npz"), images, upstream, parts)


def assert_is_that_of_the_parts(found, images, upstream, parts):
    rows = np.arange(16).reshape(2, parts, -1).swapaxes(0, 1).reshape(parts, -1)
    of_parts = [reference(images[row].astype(np.float64), upstream[row].astype(np.float64)) for row in rows]
    outputs, of_images, of_gamma, of_beta, mean, variance = zip(*of_parts, strict=True)
    for index, row in enumerate(rows):
        np.testing.assert_allclose(found["outputs"][row], outputs[index], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["of_images"][row], of_images[index], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["of_gamma"].sum(0), np.sum(of_gamma, 0), rtol=1e-4)
    np.testing.assert_allclose(found["of_beta"].sum(0), np.sum(of_beta, 0), rtol=1e-4, atol=1e-2)
    # The running statistics, which start at 0 and 1, are the same on both replicas.
    for value in found["mean"]:
        np.testing.assert_allclose(value / 0.05, np.mean(mean, 0), rtol=2e-7)
    for value in found["variance"]:
        np.testing.assert_allclose((value - 0.95) / 0.05, np.mean(variance, 0), rtol=1e-4)
