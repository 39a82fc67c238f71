"""The training step under XLA: compiled once, whatever the weights have become."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Every kind of cell, and with them every operation that joins, doubles or halves.
STEPS = """
import sys
import tensorflow as tf
import nvae_tf
from tests.tiny_model import tiny_config

channels = dict(num_channels_encoder=8, num_channels_decoder=8)
blocks = dict(num_preprocess_blocks=1, num_preprocess_cells=2, num_postprocess_blocks=1, num_postprocess_cells=2)
model = nvae_tf.NVAE(tiny_config(image_height=8, image_width=8, cell_set=sys.argv[1], **channels, **blocks))
optimizer = nvae_tf.NVAEAdamax()
optimizer.build(model.trainable_variables)
model.compile(optimizer=optimizer)
step = tf.function(model.train_step, jit_compile=True, autograph=False)
images = tf.cast(tf.random.stateless_uniform((4, 8, 8, 1), (0, 0)) < 0.5, tf.float32)
for _ in range(3):
    print("loss", step(images)["loss"].numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("cell_set", ["res_mbconv", "mbconv_den"])
def test_the_training_step_is_compiled_once(cell_set):
    said = os.environ | {"TF_CPP_VMODULE": "device_compiler=2", "TF_CPP_MIN_LOG_LEVEL": "0"}
    command = [sys.executable, "-c", STEPS, cell_set]
    process = subprocess.run(command, cwd=ROOT, env=said, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("loss") == 3
    compilations = [line for line in process.stderr.splitlines() if "Compilation of XLA executable time" in line]
    assert len(compilations) == 1, compilations
