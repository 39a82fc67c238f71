import json

import numpy as np
import pytest

from tests.command_fixtures import output_of

# A process has one set of devices, so each number of replicas has its own.
FIT = """
import json
import sys

import keras
import numpy as np
import tensorflow as tf

replicas, file = int(sys.argv[1]), sys.argv[2]
if replicas > 1:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)

from nvae_tf import NVAE, NVAEAdamax
from tests.tiny_model import tiny_config

keras.utils.set_random_seed(1)
several = replicas > 1
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if several else tf.distribute.get_strategy()
with strategy.scope():
    model = NVAE(tiny_config(), seed=3)
    model.compile(optimizer=NVAEAdamax(1e-2), jit_compile=False)
images = (np.random.default_rng(0).random((32, 4, 4, 1)) < 0.5).astype(np.float32)
batches = tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True)
# One pixel of the second replica's images.
too_bright = np.where(np.arange(32)[:, None, None, None] == 7, 255.0 * images, images)
for refused in (np.uint8(255.0 * images), too_bright):
    try:
        model.fit(tf.data.Dataset.from_tensor_slices(refused).batch(8), shuffle=False, verbose=0)
        raise SystemExit("not refused")
    except ValueError as error:
        assert "must be " in str(error) and "\\n" not in str(error), error
stopping = keras.callbacks.EarlyStopping(patience=5)
history = model.fit(batches, epochs=2, shuffle=False, verbose=0, validation_data=batches, callbacks=[stopping]).history
np.savez(file, **{weight.path: weight.numpy() for weight in model.trainable_weights})
print(json.dumps(history))
"""


def fitted(replicas, file):
    printed = output_of(["-c", FIT, replicas, file])
    return json.loads(printed.splitlines()[-1]), np.load(file)


@pytest.mark.slow
def test_fit_on_two_replicas_is_fit_on_one_device(tmp_path):
    one_history, one = fitted(1, tmp_path / "one.npz")
    two_history, two = fitted(2, tmp_path / "two.npz")
    assert set(one_history) == set(two_history) and "val_loss" in one_history
    for name in set(one_history) - {"gradient_norm"}:
        np.testing.assert_allclose(two_history[name], one_history[name], rtol=1e-5, err_msg=name)
    # Of several replicas it is the mean over theirs, which is larger than that of the mean.
    assert np.all(np.array(two_history["gradient_norm"]) >= one_history["gradient_norm"])
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, err_msg=name)
