"""The use of the latents: `latents`."""

from typing import Any

import numpy as np

from nvae_tf.evaluation.kl_heat_map import kl_heat_map
from nvae_tf.evaluation.latent_usage import ACTIVE_FROM, active_units
from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.generation.shared_groups import numbers_of_shared_groups, samples_sharing_groups

_COLUMNS = 8


def latents_figures(task: EvaluationTask, likelihood: Likelihood) -> dict[str, Any]:
    """Active units of every group, and two pictures in the run's `evaluation/`: the KL of every latent channel, and
    samples that share the latents of the upper groups.
    """
    plan = task.trained.model.plan
    per_channel = likelihood.kl_per_channel_nats
    active = active_units(per_channel, plan.latent_shapes())
    folder = task.folder.evaluation
    heat_map = folder / f"kl_per_channel-{task.split}.png"
    write_png(heat_map, kl_heat_map(per_channel, plan.latent_shapes()))
    shared = folder / "samples_with_shared_groups.png"
    write_png(shared, image_grid(samples_with_shared_groups(task), _COLUMNS, enlarge=None))
    return {
        "active_units_per_group": active.tolist(),
        "active_units": int(active.sum()),
        "active_from_nats": ACTIVE_FROM,
        "latent_channels": plan.num_latent_per_group,
        "kl_per_channel_nats": per_channel.tolist(),
        "pictures": [str(file.relative_to(task.folder.path)) for file in (heat_map, shared)],
    }


def samples_with_shared_groups(task: EvaluationTask) -> np.ndarray:
    """Rows of samples that share the latents of the upper 0, 1, 2, 4 ... groups, `[8 * rows, height, width, channels]`.

    What differs in a row is what the groups below decide.
    """
    model = task.trained.model
    numbers = numbers_of_shared_groups(model.plan.num_groups)
    return np.concatenate([samples_sharing_groups(model, number, _COLUMNS, seed=task.seed) for number in numbers])
