"""Paths between latents, and the images that a model makes of them."""

from collections.abc import Sequence

import numpy as np

from nvae_tf.config import check, check_choice
from nvae_tf.generation.sampling import Progress, encode_images, generator_of
from nvae_tf.latent_plan import of_groups
from nvae_tf.models import NVAE

WAYS = ("spherical", "linear", "keep")
# In radians. Below it an arc and a straight line are the same in float32; and opposite latents have no arc.
_SMALLEST_ANGLE = 1e-4


def interpolate_latents(
    start: Sequence[np.ndarray],
    end: Sequence[np.ndarray],
    fractions: Sequence[float],
    how: str | Sequence[str] = "spherical",
) -> list[np.ndarray]:
    """Latents between one image's and another's; fraction 0 gives exactly `start`, 1 exactly `end`.

    With "spherical" a group's latent, taken as one vector, goes along the arc (Shoemake 1985; White 2016, "Sampling
    generative networks"), so that a path between vectors of equal length keeps the length, as samples of a
    high-dimensional Normal have it. Parallel, opposite and zero vectors have no such arc and go straight.

    `start` and `end` are of one image each, `[height, width, latent channels]` for each group. `fractions` are places
    on the path, the first axis of the latents that are returned. `how` is "spherical", "linear" or "keep" (stays at
    `start`), for all groups or as a list, see `of_groups`.
    """
    shapes = [np.shape(latent) for latent in start]
    if not shapes or shapes != [np.shape(latent) for latent in end] or any(len(shape) != 3 for shape in shapes):
        raise ValueError(
            f"latents of shapes {shapes} and {[np.shape(latent) for latent in end]}: both must be of one image, with "
            "the same groups, [height, width, latent channels] each"
        )
    fractions = np.asarray(fractions, np.float64).reshape(-1, 1, 1, 1)
    ways = ways_of_groups(how, shapes)
    return [_between(*ends, fractions, way).astype(np.float32) for *ends, way in zip(start, end, ways, strict=True)]


def interpolate_images(
    model: NVAE,
    images: np.ndarray,
    steps: int,
    how: str | Sequence[str] = "spherical",
    seed: int = 0,
    mean: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean images on a path through images in turn; where it passes an image it is exactly its reconstruction.

    The images are two or more, `[count, height, width, channels]` in [0, 1]; those returned are float32 `[(count - 1) *
    steps + 1, height, width, channels]`. `how` as for `interpolate_latents`: groups with "keep" have the first image's
    latents all along. `seed`, `mean` and `progress` as for `encode_images`.
    """
    check(len(images) >= 2, f"{len(images)} image: an interpolation needs at least two")
    check(steps >= 1, f"steps = {steps}: must be at least 1")
    ways = ways_of_groups(how, model.plan.latent_shapes())
    latents = encode_images(model, images, seed, mean)
    passed = [np.repeat(z[:1], len(z), axis=0) if way == "keep" else z for z, way in zip(latents, ways, strict=True)]
    generator = generator_of(model)
    # By themselves, in the places that they have in `reconstruct_images`.
    ends = generator.generate(len(images), 1.0, seed, latents=passed)
    if steps == 1:
        return ends
    fractions = np.arange(1, steps) / steps
    pairs = [([z[i] for z in passed], [z[i + 1] for z in passed]) for i in range(len(images) - 1)]
    ways_between = [interpolate_latents(start, end, fractions, ways) for start, end in pairs]
    inner = [np.concatenate(of_group) for of_group in zip(*ways_between, strict=True)]
    between = generator.generate(len(inner[0]), 1.0, seed, progress, inner)
    frames = np.empty(((len(images) - 1) * steps + 1, *ends.shape[1:]), np.float32)
    is_end = np.arange(len(frames)) % steps == 0
    frames[is_end], frames[~is_end] = ends, between
    return frames


def ways_of_groups(how: str | Sequence[str], shapes: Sequence[tuple[int, int, int]]) -> list[str]:
    """`how` of every group, see `interpolate_latents`; ValueError where it is unknown or fits no scales and groups."""
    given = [how] if isinstance(how, str) else list(how)
    for way in given:
        check_choice("how", way, WAYS)
    return given * len(shapes) if isinstance(how, str) else of_groups(given, shapes, "ways to interpolate")


def _between(start: np.ndarray, end: np.ndarray, fractions: np.ndarray, way: str) -> np.ndarray:
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    if way == "keep":
        return np.broadcast_to(start, (len(fractions), *start.shape))
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    angle = 0.0
    if way == "spherical" and min(lengths) > 0.0:
        one, other = start / lengths[0], end / lengths[1]
        # Kahan's formula: the arc cosine would lose half of the digits of small angles.
        angle = 2.0 * np.arctan2(np.linalg.norm(one - other), np.linalg.norm(one + other))
    if not _SMALLEST_ANGLE < angle < np.pi - _SMALLEST_ANGLE:
        return (1.0 - fractions) * start + fractions * end
    # Both weights are exactly 0 or 1 at the ends.
    weights = np.sin((1.0 - fractions) * angle) / np.sin(angle), np.sin(fractions * angle) / np.sin(angle)
    return weights[0] * start + weights[1] * end
