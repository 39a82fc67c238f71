"""The numbers in checkpoints of runs, to be compared."""

import numpy as np
import tensorflow as tf


def tensors(workdir, step):
    """All numbers of a checkpoint (of a step, or "best/step-N") by name: weights, optimizer, step and metrics."""
    name = step if isinstance(step, str) else f"step-{step}"
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_tensors(one, other, step):
    """The checkpoints of two runs are the same, bit for bit."""
    expected, found = tensors(one, step), tensors(other, step)
    assert set(found) == set(expected) and len(found) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
