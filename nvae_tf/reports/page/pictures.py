"""Pictures that a run's model makes, as HTML: samples, reconstructions, ways between pictures."""

import contextlib
from collections.abc import Callable

import numpy as np

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split
from nvae_tf.errors import first_line
from nvae_tf.generation.image_grid import image_grid, rows_of_path
from nvae_tf.generation.interpolation import interpolate_images
from nvae_tf.generation.reconstruction import reconstruct_images
from nvae_tf.generation.sampling import ImageGenerator, numbers_of_shared_groups, samples_sharing_groups
from nvae_tf.progress import StatusLine
from nvae_tf.reports.page.markup import paragraph, picture
from nvae_tf.training.loading import TrainedRun, spec_to_read

TEMPERATURES = (1.0, 0.9, 0.8, 0.7)
# Of small images and of large ones, which show more each.
_MANY, _FEW, _LARGE_FROM = 36, 16, 128
_COLUMNS = 8
_WAYS, _STEPS = 3, 7


class ReportPictures:
    """Draws what the page shows; what can't be drawn becomes a sentence in its place.

    Attributes:
      missing: what could not be drawn, a line each.
    """

    def __init__(self, trained: TrainedRun, data_path: str | None, seed: int, status: StatusLine):
        self._trained, self._data_path, self._seed, self._status = trained, data_path, seed, status
        self.missing: list[str] = []

    def samples(self) -> str:
        """Samples at four temperatures, from the same noise."""
        generator = ImageGenerator(self._trained.model)
        config = self._trained.config.model
        count = _FEW if min(config.image_height, config.image_width) >= _LARGE_FROM else _MANY

        def at(temperature: float) -> str:
            images = generator.generate(count, temperature, self._seed)
            told = f"{count} images, each the mean of the likelihood"
            return picture(image_grid(images, enlarge=None), f"Temperature {temperature:.1f}", told)

        drawn = [
            self._drawn(f"samples at temperature {temperature}", lambda temperature=temperature: at(temperature))
            for temperature in TEMPERATURES
        ]
        text = (
            f"Images of latents from the prior, seed {self._seed}. The temperature multiplies the priors' standard "
            "deviations: 1.0 is the model as trained; below it, images are cleaner and more alike. Images in the same "
            "place come from the same noise."
        )
        return paragraph(text) + _in_columns(drawn)

    def of_test_images(self) -> str:
        """Test images and their reconstructions, and ways between the first of them."""
        try:
            originals = self._test_images()
        except (ValueError, OSError) as error:
            return self._told("pictures of test images", error)
        return _in_columns(
            [
                self._drawn("reconstructions", lambda: self._reconstructions(originals)),
                self._drawn("interpolation", lambda: self._interpolation(originals)),
            ]
        )

    def shared_groups(self) -> str:
        """Rows of samples that share the latents of their upper groups."""
        model = self._trained.model
        numbers = numbers_of_shared_groups(model.plan.num_groups)

        def draw() -> str:
            rows = [samples_sharing_groups(model, number, _COLUMNS, seed=self._seed) for number in numbers]
            told = (
                f"{model.plan.num_groups} groups: from the top row down, the latents of the upper "
                f"{', '.join(map(str, numbers))} are those of the leftmost sample; what differs in a row is what the "
                "groups below decide. Temperature 1.0."
            )
            grid = image_grid(np.concatenate(rows), _COLUMNS, enlarge=None)
            return picture(grid, "Samples sharing their upper groups", told)

        return _in_columns([self._drawn("samples sharing their upper groups", draw)])

    def _reconstructions(self, originals: np.ndarray) -> str:
        made = reconstruct_images(self._trained.model, originals, seed=self._seed)
        grid = image_grid(np.concatenate([originals, made]), len(originals), enlarge=None)
        told = f"of the first {len(originals)} test images: originals above, below them what the model keeps of them."
        return picture(grid, "Reconstructions", told)

    def _interpolation(self, originals: np.ndarray) -> str:
        if len(originals) < 2:
            return paragraph("An interpolation needs two test images; there is only one.")
        path = interpolate_images(self._trained.model, originals[: _WAYS + 1], _STEPS, seed=self._seed)
        told = (
            "a row goes from one test image (its reconstruction) to the next, in equal steps along the arc between "
            "their latents."
        )
        return picture(image_grid(rows_of_path(path, _STEPS), _STEPS + 1, enlarge=None), "Interpolation", told)

    def _test_images(self) -> np.ndarray:
        """The first test images as the model sees them, `[up to 8, height, width, channels]`."""
        spec = spec_to_read(self._trained.config, self._data_path)
        source = load_split(spec, "test", self._status.report())
        count = min(_COLUMNS, source.count)
        with contextlib.closing(iterate(evaluation_batches(source, spec, count, self._seed, [0]), source)) as batches:
            return next(batches).numpy()

    def _drawn(self, what: str, draw: Callable[[], str]) -> str:
        self._status.show_if_due(f"drawing {what}")
        try:
            return draw()
        except (ValueError, OSError) as error:
            return self._told(what, error)

    def _told(self, what: str, error: Exception) -> str:
        self.missing.append(f"{what}: {first_line(error)}")
        return paragraph(f"Here would be {what}, but: {first_line(error)}")


def _in_columns(parts: list[str]) -> str:
    return f'<div class="pictures">{"".join(parts)}</div>'
