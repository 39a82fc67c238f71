"""How much closer to real images samples of a reweighted prior are than those of other ways to draw them.

    python -m benchmarks.fashion_models binary --workdir=RUN
    python -m benchmarks.fashion_features
    python -m benchmarks.reweighted_prior --workdir=RUN [--samples=2000] [--seeds=3] [--json=FILE]

Learns three reweighted priors in turn (a mixture, a classifier of the top group, classifiers of the top two), of which
the last stays in the run folder. Prints for each way to draw samples the Fréchet distance from the training images, in
the features of `benchmarks.fashion_features`: the mean over the seeds, and their range. Also how long it takes to learn
the priors, and how much longer to draw from them, measured in turns with the model's own.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import fashion_features, results
from benchmarks.results import say, take_turns
from nvae_tf.errors import start_tensorflow_quietly

TEMPERATURES = (0.6, 0.7, 0.8, 0.9)
READJUSTED = (0.7, 0.8, 0.9, 1.0)
PRIORS = {
    "mixture of the top group": {"kind": "mixture"},
    "reweighted top group": {"groups": 1},
    "reweighted top two groups": {"groups": 2},
}
_IMAGES_TIMED = 160


class Distances:
    """Fréchet distances from the training images of a run."""

    def __init__(self, workdir: str, samples: int, seeds: int):
        from nvae_tf.data.pipeline import evaluation_batches, stored_spec
        from nvae_tf.data.sources import load_split
        from nvae_tf.evaluation.fid import image_statistics
        from nvae_tf.training.loading import load_run

        self.run, self._samples, self._seeds = load_run(workdir), samples, seeds
        spec, self._extractor = stored_spec(self.run.config.data), fashion_features.make_extractor()
        train, test = (load_split(spec, split) for split in ("train", "test"))
        batches = (batch.numpy() for batch in evaluation_batches(train, spec, 256, 0))
        self._real = image_statistics(batches, self._extractor)
        self.test = np.concatenate([batch.numpy() for batch in evaluation_batches(test, spec, 256, 0)])[:samples]

    def of(self, images: np.ndarray) -> float:
        """Of images `[count, height, width, channels]`, rounded to 8 bits."""
        from nvae_tf.evaluation.fid import frechet_distance, image_statistics

        rounded = np.rint(images * np.float32(255.0)) / np.float32(255.0)
        return frechet_distance(self._real, image_statistics([rounded], self._extractor))

    def of_samples(self, model: Any, temperature: float = 1.0, prior: str = "model") -> dict[str, float]:
        """Of samples with several seeds, with one graph for all."""
        from nvae_tf.generation.sampling import ImageGenerator

        generator = ImageGenerator(model)
        seeds = range(1, self._seeds + 1)
        found = [self.of(generator.generate(self._samples, temperature, seed, prior=prior)) for seed in seeds]
        return {"distance": statistics.mean(found), "smallest": min(found), "largest": max(found)}


def without_reweighting(distances: Distances) -> Iterator[dict[str, Any]]:
    """Rows of the table: real images, reconstructions, and what there is without a reweighted prior."""
    from nvae_tf.data.pipeline import evaluation_batches
    from nvae_tf.data.sources import load_split
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.generation.sampling import reconstruct_images

    model, spec = distances.run.model, distances.run.config.data
    yield {"images": "unseen real images", "distance": distances.of(distances.test)}
    test = np.concatenate([batch.numpy() for batch in evaluation_batches(load_split(spec, "test"), spec, 256, 0)])
    made = reconstruct_images(model, test[: len(distances.test)])
    yield {"images": "their reconstructions", "distance": distances.of(made)}
    yield {"images": "samples at temperature 1"} | distances.of_samples(model)
    for temperature in TEMPERATURES:
        yield {"images": f"temperature {temperature:g}"} | distances.of_samples(model, temperature)
    for temperature in READJUSTED:
        row = distances.of_samples(readjusted(model, temperature).model, temperature)
        yield {"images": f"readjusted batch norm, temperature {temperature:g}"} | row


def with_reweighting(distances: Distances, workdir: str) -> Iterator[dict[str, Any]]:
    """Rows of the table: each prior, with the seconds to learn it, and with batch norm readjusted to it."""
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.training.loading import load
    from nvae_tf.training.prior import learn_prior, prior_text

    for name, settings in PRIORS.items():
        start = time.perf_counter()
        about = learn_prior(workdir, **settings)
        row, model = {"images": name, "seconds_to_learn": time.perf_counter() - start}, load(workdir)
        say(prior_text(about))
        row |= {"cross_entropy": about["cross_entropy"], "effective_proposals": about["effective_proposals"]}
        yield row | distances.of_samples(model, prior="reweighted") | {"time_ratio": time_ratio(model)}
        model = readjusted(model, 1.0, prior="reweighted").model
        yield {"images": f"{name}, readjusted batch norm"} | distances.of_samples(model, prior="reweighted")


def time_ratio(model: Any) -> float:
    """How many times as long samples of the reweighted prior take: the median over turns."""
    from nvae_tf.generation.sampling import generate_images

    def drawing(prior: str) -> Callable[[], np.ndarray]:
        return lambda: generate_images(model, _IMAGES_TIMED, prior=prior)

    seconds = take_turns({prior: drawing(prior) for prior in ("model", "reweighted")}, rounds=7)
    pairs = zip(seconds["reweighted"], seconds["model"], strict=True)
    return statistics.median(reweighted / plain for reweighted, plain in pairs)


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("reweighted_prior", __doc__)
    parser.add_argument("--workdir", required=True, help="run folder of a model of Fashion-MNIST")
    parser.add_argument("--samples", type=results.at_least(2), default=2000)
    parser.add_argument("--seeds", type=results.at_least(1), default=3)
    options = parser.parse_args(arguments)
    start_tensorflow_quietly()

    def measure(_: Any) -> dict[str, Any]:
        distances, rows = Distances(options.workdir, options.samples, options.seeds), []
        for part in (without_reweighting(distances), with_reweighting(distances, options.workdir)):
            for row in part:
                say(f"{row['images']}: {row['distance']:.2f}")
                rows.append(row)
        return {"samples": options.samples, "seeds": options.seeds, "rows": rows}

    results.run(options, measure)


if __name__ == "__main__":
    main()
