"""What the tests of layers share: convolution by explicit loops, and random numbers."""

import numpy as np
import pytest


def convolve_by_loops(images, kernel, strides=1, dilation=1, groups=1):
    """Convolves `[b, h, w, in]` with `[k, k, in / groups, out]`, `k // 2 * dilation` zeros on each side."""
    size, _, channels_per_group, channels_out = kernel.shape
    margin = size // 2 * dilation
    padded = np.pad(images.astype(np.float64), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    height, width = (-(-side // strides) for side in images.shape[1:3])
    outputs = np.zeros((len(images), height, width, channels_out))
    out_per_group = channels_out // groups
    for y, x in np.ndindex(height, width):
        for i, j in np.ndindex(size, size):
            pixel = padded[:, y * strides + i * dilation, x * strides + j * dilation]
            for out in range(channels_out):
                first = out // out_per_group * channels_per_group
                taps = pixel[:, first : first + channels_per_group]
                outputs[:, y, x, out] += taps @ kernel[i, j, :, out]
    return outputs


def normalized_kernel(kernel, log_norm, mask=1.0):
    """The effective kernel of one weight-normalized convolution, one output channel after another."""
    kernel = kernel.astype(np.float64) * mask
    effective = np.empty_like(kernel)
    for out in range(kernel.shape[-1]):
        length = np.sqrt(np.sum(kernel[..., out] ** 2))
        effective[..., out] = np.exp(log_norm[out]) * kernel[..., out] / (length + 1e-5)
    return effective


class Reference:
    """Independent maths; a fixture, because tests are no package to import from."""

    convolve = staticmethod(convolve_by_loops)
    normalized_kernel = staticmethod(normalized_kernel)


@pytest.fixture(scope="session")
def reference():
    return Reference


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
