"""How well outlier scores tell test images from images of another kind, for a model of gray images of one object.

    nvae-calibrate --workdir=RUN
    python -m benchmarks.outliers --workdir=RUN [--count=2000] [--llr_images=300] [--json=FILE]

RUN is a run folder with gray test images, such as those of Fashion-MNIST. Others are scikit-learn's handwritten digits,
scaled like MNIST's into the middle of a black image; the test images turned by 90 degrees, and upside down; noise,
uniform in each pixel; and black images. All become what the model sees as the run's own images do: binarized, if these
are. Prints the area under the ROC curve of each score, that of test images among training images, and the share of
images with a p-value of at most 0.05.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import results
from nvae_tf.errors import start_tensorflow_quietly

LLR_SAMPLES, BATCH_SIZE = 20, 100


def digits(size: int) -> np.ndarray:
    """All digits of scikit-learn, uint8 `[count, size, size, 1]`; as in MNIST, 5 of 7 parts of the size are used."""
    from sklearn.datasets import load_digits

    inner = round(size * 20 / 28)
    before = (size - inner) // 2
    images = np.zeros([len(load_digits().images), size, size, 1], np.uint8)
    for image, eight in zip(images, load_digits().images, strict=True):
        picture = Image.fromarray(np.uint8(eight * 255 / 16)).resize((inner, inner), Image.Resampling.BICUBIC)
        image[before : before + inner, before : before + inner, 0] = np.asarray(picture)
    return images


def image_sets(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The images that are compared, uint8 `[count, height, width, 1]`; the test images come first."""
    random = np.random.RandomState(0)
    return {
        "test": test,
        "digits": digits(test.shape[1])[: len(test)],
        "turned by 90 degrees": np.rot90(test, axes=(1, 2)),
        "upside down": test[:, ::-1],
        "noise": random.randint(0, 256, test.shape).astype(np.uint8),
        "black": np.zeros_like(test),
        "training": train,
    }


def measure(options: Any) -> dict[str, Any]:
    start_tensorflow_quietly()
    import tensorflow as tf

    from nvae_tf.data.pipeline import evaluation_batches, images_alone
    from nvae_tf.data.sources import ArraySource, load_split
    from nvae_tf.evaluation.outliers import aurocs, flagged, scores_of
    from nvae_tf.training.loading import load_run

    run = load_run(options.workdir)
    model, spec = run.model, images_alone(run.config.data)
    if not hasattr(model.outlier_calibration, "mean"):
        raise SystemExit(model.outlier_calibration or f"first: nvae-calibrate --workdir={options.workdir}")
    parts, scores = [], {}
    for split in ("train", "test"):
        source = load_split(spec, split)
        numbers = np.linspace(0, source.count - 1, min(options.count, source.count)).astype(np.int32)
        parts.append(source.reader()(tf.constant(numbers)).numpy())
    ratios = likelihood_ratios(model) if options.llr_images else {}
    for name, images in image_sets(*parts).items():
        source = ArraySource(np.ascontiguousarray(images))
        (seen,) = evaluation_batches(source, spec, source.count, seed=0)
        found = model.outlier_score(seen, batch_size=BATCH_SIZE).parts
        arrays = {"reconstruction": found.reconstruction.numpy(), "kl": found.kl.numpy()}
        scores[name] = scores_of(arrays, model.outlier_calibration)
        scores[name] |= {key: ratio(seen[: options.llr_images]) for key, ratio in ratios.items()}
        print(f"{name}: {source.count} images", flush=True)
    inside = scores["test"]
    rows = {name: aurocs(inside, scores[name]) for name in scores if name not in ("test", "training")}
    return {
        "step": run.step,
        "images": len(inside["kl"]),
        "groups": model.plan.num_groups,
        "llr_samples": LLR_SAMPLES,
        "llr_images": options.llr_images,
        "auroc": rows | {"test, against training": aurocs(scores["training"], inside)},
        "flagged": {name: flagged(of_set) for name, of_set in scores.items()},
    }


def likelihood_ratios(model: Any) -> dict[str, Callable[[Any], np.ndarray]]:
    """LLR>k by its name, as functions of images, for k of 1, 2, 4 ... latent groups."""
    import tensorflow as tf

    from nvae_tf.evaluation.outliers import likelihood_ratio
    from nvae_tf.models.latents import image_seeds

    def ratio_of(groups: int) -> Callable[[Any], np.ndarray]:
        @functools.partial(tf.function, autograph=False, reduce_retracing=True)
        def ratio(images: Any, seeds: Any) -> Any:
            return likelihood_ratio(model, images, seeds, groups, LLR_SAMPLES)

        def of_images(images: Any) -> np.ndarray:
            seeds, starts = image_seeds(0, len(images)), range(0, len(images), BATCH_SIZE)
            batches = [(rows[first : first + BATCH_SIZE] for rows in (images, seeds)) for first in starts]
            return np.concatenate([ratio(*batch).numpy() for batch in batches])

        return of_images

    powers = [2**power for power in range(20) if 2**power < model.plan.num_groups]
    return {f"LLR>{groups}": ratio_of(groups) for groups in powers}


def table(result: dict[str, Any]) -> str:
    areas, shares = result["auroc"], result["flagged"]
    about = f"step {result['step']:,}, {result['groups']} latent groups, {result['images']:,} images of each kind, "
    about += f"{result['llr_images']:,} for LLR with {result['llr_samples']} samples"
    lines = results.markdown(
        ["AUROC", *next(iter(areas.values()))],
        [[name, *map("{:.3f}".format, row.values())] for name, row in areas.items()],
    )
    of_p_values = results.markdown(
        ["p-value at most 0.05", *shares["test"]],
        [[name, *map("{:.1%}".format, row.values())] for name, row in shares.items()],
    )
    return "\n".join([about, "", *lines, "", *of_p_values])


def main() -> None:
    parser = results.benchmark_parser("outliers", __doc__)
    parser.add_argument("--workdir", required=True, help="run folder, after nvae-calibrate")
    parser.add_argument("--count", type=results.at_least(10), default=2000, help="images of each kind at most")
    parser.add_argument("--llr_images", type=results.at_least(0), default=300, help="of these, for LLR>k; 0: none")
    results.run(parser.parse_args(), measure, table)


if __name__ == "__main__":
    main()
