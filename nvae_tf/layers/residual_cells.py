"""Stacked residual cells: `skip(x) + 0.1 * gate * branch(x)` (Vahdat & Kautz 2020, figure 3 and appendix A)."""

import tensorflow as tf

from nvae_tf import latent_plan
from nvae_tf.layers.branches import residual_branch
from nvae_tf.layers.resampling import BilinearExpand, FactorizedReduce
from nvae_tf.layers.squeeze_excite import StackedSqueezeExcite
from nvae_tf.layers.stacked import StackedLayer

RESIDUAL_SCALE = 0.1


class ResidualCells(StackedLayer):
    """`count` cells of one kind.

    `channels_out` equal to `channels_in` makes normal cells, twice it *down* cells (half the resolution), half of it
    *up* cells (twice the resolution).
    """

    def __init__(
        self,
        count: int,
        branch: latent_plan.Branch,
        channels_in: int,
        channels_out: int,
        squeeze_excite: bool,
        **kwargs,
    ):
        shared = {"dtype": kwargs.get("dtype")}
        change = "none" if channels_in == channels_out else "down" if channels_out > channels_in else "up"
        skip = {"none": None, "down": FactorizedReduce, "up": BilinearExpand}[change]
        parts = [residual_branch(count, branch, channels_in, channels_out, change, **shared)]
        if squeeze_excite:
            parts.append(StackedSqueezeExcite(count, channels_out, **shared))
        if skip is not None:
            parts.append(skip(count, channels_in, channels_out, **shared))
        super().__init__(count, parts, **kwargs)
        self.branch = parts[0]
        self.gate = parts[1] if squeeze_excite else None
        self.skip = parts[-1] if skip is not None else None

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """One cell on `[batch, height, width, channels]`."""
        residual = self.branch.apply_slice(weights[0], inputs, records)
        if self.gate is None:
            residual = RESIDUAL_SCALE * residual
        else:
            residual = residual * (RESIDUAL_SCALE * self.gate.apply_slice(weights[1], residual, records))
        if self.skip is None:
            return inputs + residual
        return self.skip.apply_slice(weights[-1], inputs, records) + residual
