"""What grew first where training has diverged: the KL of which group, the spectral norm of which layer."""

from collections.abc import Sequence

import numpy as np

from nvae_tf.models import NVAE
from nvae_tf.models.metrics import RecentSteps
from nvae_tf.published.names import named_weights

# A figure has grown where it is so many times its usual value, the median over the earlier half of accepted steps.
_GROWN = 3.0


def what_grew_first(model: NVAE) -> str:
    """One sentence about the steps that the model remembers."""
    shapes = model.plan.latent_shapes()
    groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in enumerate(shapes)]
    return told_growth(model.recent.read(), groups, layer_names(model))


def layer_names(model: NVAE) -> list[str]:
    """The name of every convolution, in the order of the spectral norms."""
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    return [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]


def told_growth(steps: RecentSteps, groups: Sequence[str], layers: Sequence[str]) -> str:
    """The same, from the figures themselves.

    Args:
      steps: the last steps.
      groups: names of the groups.
      layers: names of the layers.
    """
    if not len(steps.accepted):
        return "No step is remembered"
    kl = _first_growth(steps.kl_per_group, steps.accepted, groups, "KL", " nats")
    norm = _first_growth(steps.spectral_norms, steps.accepted, layers, "spectral norm", "")
    return f"In the last {len(steps.accepted)} steps: {kl}; {norm}"


def _first_growth(values: np.ndarray, accepted: np.ndarray, names: Sequence[str], what: str, unit: str) -> str:
    taken = np.flatnonzero(accepted)
    usual = np.median(values[taken[: max(len(taken) // 2, 1)]], axis=0) if len(taken) else values[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratios = np.where(np.isfinite(values), np.abs(values) / np.maximum(np.abs(usual), 1e-6), np.inf)
    ratios = np.nan_to_num(ratios, nan=0.0, posinf=np.inf)
    grown = (ratios > _GROWN).any(axis=1)
    step = int(np.argmax(grown)) if grown.any() else int(np.argmax(ratios.max(axis=1)))
    place = int(np.argmax(ratios[step]))
    before_last = len(values) - 1 - step
    when = "at the last step" if before_last == 0 else f"{before_last} steps before the last"
    if not np.isfinite(usual[place]):
        return f"the {what} of {names[place]} was {values[step, place]:,.4g} {when}"
    change = f"{usual[place]:,.4g} to {values[step, place]:,.4g}{unit} {when}"
    if not grown.any():
        return f"no {what} has tripled, that of {names[place]} grew most, from {change}"
    return f"the {what} of {names[place]} grew first, from {change}"
