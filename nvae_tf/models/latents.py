"""Where a group's latent comes from: the posterior of an image, the prior, or given from outside.

The top-down pass asks one source a group, so inference, generation and everything between (the upper groups from an
image and the rest from the prior) are the same pass.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal, soft_clamped_normal
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.layers.cpu_kernels import fan_out

Normal = tfp.distributions.Normal


class LatentSample(NamedTuple):
    """One group's latent `[batch, height, width, latent channels]` and where it came from.

    Attributes:
      z: the latent, after the flows.
      z_before_flows: the posterior's own sample; the same as `z` without flows.
      prior: the group's prior given the groups above.
      posterior: the posterior before the flows, or None where z does not come from it.
      has_flows: whether flows lie between `z_before_flows` and `z`.
    """

    z: tf.Tensor
    z_before_flows: tf.Tensor
    prior: Normal
    posterior: Normal | None = None
    has_flows: bool = False


class GroupLayers(NamedTuple):
    """What one latent group computes, as functions of tensors.

    Attributes:
      cells: residual cells on the state; none for the top group.
      prior: state -> mean and log-scale of the prior, before the clamp; zeros for the top group.
      posterior: (state, bottom-up feature) -> mean and log-scale that the posterior adds or takes.
      flows: latent -> latent.
      combine: (state, z) -> state.
    """

    cells: list[Callable]
    prior: Callable
    posterior: Callable
    flows: list[Callable]
    combine: Callable


class LatentSource(Protocol):
    """Gives one group's latent to the top-down pass."""

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of the group whose layers and incoming state these are."""


def standard_prior(state: tf.Tensor, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and log-scale of the top group's prior: zeros, so that sigma is 1.01 (see `soft_clamped_normal`)."""
    batch_size = state.shape[0] or tf.shape(state)[0]
    zeros = tf.zeros((batch_size, *state.shape[1:3], channels))
    return zeros, zeros


@dataclasses.dataclass(frozen=True)
class PosteriorSource:
    """Draws from q(z | x, groups above) with standard-normal `noise` `[batch, height, width, latent channels]`."""

    feature: tf.Tensor
    noise: tf.Tensor
    residual: bool = True

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """A reparameterised sample, pushed through the group's flows."""
        prior_mean, prior_log_scale = layers.prior(state)
        mean, log_scale = layers.posterior(state, self.feature)
        if self.residual:
            mean, log_scale = prior_mean + mean, prior_log_scale + log_scale
        posterior = soft_clamped_normal(mean, log_scale)
        scale = posterior.scale
        if layers.flows:
            # The density of what is drawn has two uses of its own.
            scale, scale_of_density = fan_out(scale, 2)
            posterior = SoftClampedNormal(posterior.loc, scale_of_density, validate_args=False)
        z = z_before_flows = posterior.loc + scale * self.noise
        for flow in layers.flows:
            z = flow(z)
        prior = soft_clamped_normal(prior_mean, prior_log_scale)
        return LatentSample(z, z_before_flows, prior, posterior, bool(layers.flows))


@dataclasses.dataclass(frozen=True)
class PriorSource:
    """Draws from p(z | groups above) with the given noise; `temperature` multiplies the prior's sigma."""

    noise: tf.Tensor
    temperature: float | tf.Tensor = 1.0

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """A sample of the prior at the temperature."""
        prior = soft_clamped_normal(*layers.prior(state), self.temperature)
        z = prior.loc + prior.scale * self.noise
        return LatentSample(z, z, prior)


@dataclasses.dataclass(frozen=True)
class GivenSource:
    """Takes the latent from outside: `[batch, height, width, latent channels]`, after the flows."""

    latent: tf.Tensor

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The given latent, beside the prior that it could have come from."""
        z = tf.cast(self.latent, tf.float32)
        return LatentSample(z, z, soft_clamped_normal(*layers.prior(state)))


def check_latents(latents: Sequence[tf.Tensor], plan: LatentPlan, may_lack_groups: bool = False) -> list[tf.Tensor]:
    """Latents from outside, a list `[batch, height, width, latent channels]` a group, top group first, as float32.

    Raises:
      ValueError: they do not fit the plan, are not of equally many images or not finite, or groups are missing.
    """
    shapes = plan.latent_shapes()
    given = [tuple(np.shape(latent)[1:]) for latent in latents]
    if not given or given != list(shapes[: len(given)]) or (len(given) < len(shapes) and not may_lack_groups):
        raise ValueError(
            f"latents have shapes {given} without the batch; this model's are {list(shapes)}. They are of another "
            "architecture, or groups are missing (decode takes the top groups alone if it is given a temperature)"
        )
    if len({np.shape(latent)[0] for latent in latents}) != 1:
        raise ValueError(f"latents are of {[np.shape(latent)[0] for latent in latents]} images; all must be of as many")
    arrays = [np.asarray(latent, np.float32) for latent in latents]
    unsound = next((index for index, array in enumerate(arrays) if not np.isfinite(array).all()), None)
    if unsound is not None:
        raise ValueError(f"latents of group {unsound} are not all finite")
    return [tf.convert_to_tensor(array) for array in arrays]
