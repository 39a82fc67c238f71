"""Random numbers for the tests of layers, and the kinds of each layer."""

import numpy as np
import pytest


def pytest_generate_tests(metafunc):
    """Runs the tests of `LayerTests` for every kind of a layer; the tests of some kinds are quick."""
    if "make" in metafunc.fixturenames:
        slow = metafunc.cls.KINDS.keys() - metafunc.cls.QUICK
        kinds = metafunc.cls.KINDS.items()
        kinds = [pytest.param(make, id=kind, marks=[pytest.mark.slow] * (kind in slow)) for kind, make in kinds]
        metafunc.parametrize("make", kinds)


@pytest.fixture
def normal():
    """`normal(*shape)`: standard-normal float32 numbers, the same in every test."""
    generator = np.random.default_rng(7)
    return lambda *shape: generator.normal(size=shape).astype(np.float32)


@pytest.fixture
def shaken():
    """`shaken(layer)`: the layer, all its variables moved away from where they start."""

    def shake(layer):
        generator = np.random.default_rng(11)
        for variable in layer.weights:
            value = variable.numpy() + 0.3 * generator.uniform(-1.0, 1.0, variable.shape)
            variable.assign(np.abs(value) + 0.2 if "variance" in variable.name else value)
        return layer

    return shake
