"""How the latents of all groups lie in one flat vector: what exports tell those who use them."""

import math
from collections.abc import Sequence
from typing import Any


def latent_layout(shapes: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """The order, the groups' shapes and the length of a flat latent, as JSON knows them."""
    return {
        "order": "group after group, the top group first; each [height, width, channels], row-major",
        "shapes": [list(shape) for shape in shapes],
        "total": sum(map(math.prod, shapes)),
    }
