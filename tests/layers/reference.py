"""Convolution by explicit loops, for the tests of layers."""

import numpy as np


def convolve(images, kernel, strides=1, dilation=1, groups=1):
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


def normalized_kernel(kernel, log_norm):
    """The effective kernel of one weight-normalized convolution, one output channel after another."""
    kernel = kernel.astype(np.float64)
    effective = np.empty_like(kernel)
    for out in range(kernel.shape[-1]):
        length = np.sqrt(np.sum(kernel[..., out] ** 2))
        effective[..., out] = np.exp(log_norm[out]) * kernel[..., out] / (length + 1e-5)
    return effective
