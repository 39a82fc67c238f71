import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import NVAE, NVAEAdamax
from tests.command_fixtures import output_of
from tests.tiny_model import tiny_config, values

# A process has one set of devices.
ON_TWO_REPLICAS = """
import json
import sys

import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from nvae_tf.layers.normalization import moments
from nvae_tf.replicas import divided, joined
from tests.models.test_fit_on_replicas import far_from_zero, fit

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
history = fit(strategy, sys.argv[1])
images = divided(strategy, [tf.constant(far_from_zero())])
statistics = joined(strategy, strategy.run(tf.function(moments, autograph=False), images))
print(json.dumps([history, *(value.numpy().tolist() for value in statistics)]))
"""


def far_from_zero():
    """Images whose means are a thousand deviations, and not the same on both replicas."""
    images = np.random.default_rng(5).normal(size=(16, 8, 8, 2)) + [1000.0, -1000.0]
    images[:8] += 0.5
    return np.float32(images)


def fit(strategy, file):
    """The history of two epochs; the weights go into a file."""
    with strategy.scope():
        model = NVAE(tiny_config(num_latent_scales=1, squeeze_excite=False), seed=3)
        model.compile(optimizer=NVAEAdamax(1e-2), jit_compile=False)
    images = (np.random.default_rng(0).random((32, 4, 4, 1)) < 0.5).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True)
    # One pixel of the second replica's images.
    too_bright = np.where(np.arange(32)[:, None, None, None] == 7, 255.0 * images, images)
    for refused in (np.uint8(255.0 * images), too_bright):
        with pytest.raises(ValueError, match="must be ") as error:
            model.fit(tf.data.Dataset.from_tensor_slices(refused).batch(8), shuffle=False, verbose=0)
        assert "\n" not in str(error.value)
    settings = dict(epochs=2, shuffle=False, verbose=0, callbacks=[keras.callbacks.EarlyStopping(patience=5)])
    history = model.fit(batches, validation_data=batches, **settings).history
    np.savez(file, *values(model.trainable_weights))
    return history


@pytest.mark.slow
def test_fit_on_two_replicas_is_fit_on_one_device(tmp_path):
    one_history = fit(tf.distribute.get_strategy(), tmp_path / "one.npz")
    output = output_of(["-c", ON_TWO_REPLICAS, tmp_path / "two.npz"]).splitlines()[-1]
    two_history, mean, variance = json.loads(output)
    exact = np.float64(far_from_zero())
    np.testing.assert_allclose(np.reshape(mean, (2, -1)), [exact.mean((0, 1, 2))] * 2, rtol=2e-7)
    np.testing.assert_allclose(np.reshape(variance, (2, -1)), [exact.var((0, 1, 2))] * 2, rtol=1e-4)
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert set(one_history) == set(two_history) and "val_loss" in one_history
    for name in set(one_history) - {"gradient_norm"}:
        np.testing.assert_allclose(two_history[name], one_history[name], rtol=1e-5, err_msg=name)
    # Of several replicas it is the mean over theirs, which is larger than that of the mean.
    assert np.all(np.array(two_history["gradient_norm"]) >= one_history["gradient_norm"])
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, err_msg=name)
