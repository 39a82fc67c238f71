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
from nvae_tf.replicas import divided, joined

given = np.load(sys.argv[1])
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = StackedBatchNormalization(1, given["images"].shape[-1])


@tf.function(autograph=False)
def step(images, upstream):
    forward = ForwardPass(training=True)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer.single(images, forward)
    gradients = tape.gradient(outputs, [images, *layer.trainable_weights], upstream)
    return outputs, *gradients, *(value for _, value in forward.updates)


rows = divided(strategy, (tf.constant(given["images"]), tf.constant(given["upstream"])))
names = "outputs", "of_images", "of_gamma", "of_beta", "mean", "variance"
values = joined(strategy, strategy.run(step, args=rows))
np.savez(sys.argv[2], **{name: value.numpy() for name, value in zip(names, values, strict=True)})
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
    # Images differ as a whole too, so that the means of the replicas are not the same.
    images = generator.normal(size=(16, 8, 8, channels)) + generator.normal(size=(16, 1, 1, channels))
    images[:8] += 0.5
    images = np.float32(images + 1000.0 * images.std((0, 1, 2)) * generator.choice([-1.0, 1.0], channels))
    upstream = np.float32(generator.normal(size=images.shape) + images - images.mean((0, 1, 2)))
    np.savez(tmp_path / "step.npz", images=images, upstream=upstream)
    output_of(["-c", STEP, tmp_path / "step.npz", tmp_path / "found.npz"])
    found = np.load(tmp_path / "found.npz")
    outputs, of_images, of_gamma, of_beta, mean, variance = reference(images.astype(np.float64), upstream)
    np.testing.assert_allclose(found["outputs"], outputs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["of_images"], of_images, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["of_gamma"].sum(0), of_gamma, rtol=1e-4)
    np.testing.assert_allclose(found["of_beta"].sum(0), of_beta, rtol=1e-4, atol=1e-2)
    # The running statistics, which start at 0 and 1, are the same on both replicas.
    for value in found["mean"]:
        np.testing.assert_allclose(value / 0.05, mean, rtol=2e-7)
    for value in found["variance"]:
        np.testing.assert_allclose((value - 0.95) / 0.05, variance, rtol=1e-4)
