"""The memory of a training step, measured in processes of their own."""

import pytest

from tests.command_fixtures import output_of

# The peak memory of a process in bytes. `ru_maxrss` would begin with the peak of the process that started this one.
PEAK = """
def peak():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
# Prints the bytes by which one training step of many images raises the peak memory of its process.
TRAINING_STEP = """
import json, sys
import keras, tensorflow as tf
from nvae_tf.training.strategy import configure_runtime
from tests.tiny_model import tiny_model

configure_runtime()
settings = dict(image_height=8, image_width=8, num_latent_scales=1, num_groups_per_scale=3)
settings |= dict(num_cells_per_group_decoder=3, num_channels_encoder=4, num_channels_decoder=4)
model = tiny_model(keras.optimizers.SGD(1.0), **settings, **json.loads(sys.argv[1]))
step = tf.function(model.train_step, autograph=False)
step(tf.zeros([8, 8, 8, 1]))
before = peak()
step(tf.zeros([8192, 8, 8, 1]))
print(peak() - before)
"""
# The same of a forward and backward pass through stacked convolutions with batch norm and swish; an input has 32 MiB.
SWISH_CONVOLUTIONS = """
import sys
import tensorflow as tf
from nvae_tf import layers
from nvae_tf.layers.residual_cells import SwishConvolution

layers.cpu_kernels.on_one_cpu = lambda: sys.argv[1] == "one CPU"
layer = SwishConvolution(layers.StackedConvolution(12, 8, 8, 1))

@tf.function(autograph=False)
def gradients(images):
    forward = layers.ForwardPass(training=True, traced_inline=True)
    with tf.GradientTape() as tape:
        for call in layer.layers(forward):
            images = call(images)
    return tape.gradient(images, layer.trainable_weights)

gradients(tf.zeros([1, 32, 32, 8]))
images = tf.zeros([1024, 32, 32, 8])
before = peak()
gradients(images)
print(peak() - before)
"""


def added_peak(program, argument):
    return int(output_of(["-c", PEAK + program, argument]).split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "largest_part"), [('{"accumulate_steps": 4}', 0.45), ('{"recompute": "all"}', 0.65)]
)
def test_microbatches_and_recomputed_cells_need_less_memory(settings, largest_part):
    assert 0 < added_peak(TRAINING_STEP, settings) < largest_part * added_peak(TRAINING_STEP, "{}")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["one CPU", "all else"])
def test_swish_convolution_keeps_only_its_inputs_for_the_backward_pass(device):
    # The inputs of all layers but the first, and what the backward pass of one layer needs. Where the machine is busy,
    # gradients of weights wait for a thread and keep their inputs meanwhile: then it is measured again.
    assert any(0 < added_peak(SWISH_CONVOLUTIONS, device) < (12 - 1 + 6.5) * 2**25 for _ in range(6))
