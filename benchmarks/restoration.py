"""How well a trained model restores images, against classical methods.

    pip install scikit-image
    python -m benchmarks.restoration --workdir=runs/fashion [--count=100] [--json=FILE]

Four tasks on the first images of the test part: super-resolution by two, a hole of a third of height and width, noise
of 0.2, and a Gaussian blur of 1.5 pixels with noise of 0.02. Each is restored by

    classical  bicubic interpolation; biharmonic inpainting; total variation (Chambolle), the best of several weights;
               Richardson-Lucy, the best of several numbers of iterations: the best for these images themselves
    mmse       the linear estimate with mean and covariance of the training images
    model      `model.restore` as it is
    pnp, map   with --variants: `steps=0`, and 80 steps without those of PnP-HVAE

Numbers are means of the PSNR in dB (a hole's: of its pixels alone), how many percent of the images the model restores
better than the classical method, and seconds per image, the tracing of the graph included. Let nothing else run
meanwhile.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import results

TASKS = {"x2": "bicubic", "hole": "biharmonic", "noise": "TV", "blur": "Richardson-Lucy"}
_TV_WEIGHTS, _RICHARDSON_LUCY_STEPS = np.linspace(0.05, 0.5, 10), (5, 10, 20, 30, 50, 100)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.data.pipeline import chosen_images
    from nvae_tf.data.sources import load_split
    from nvae_tf.models.restoration import measured
    from nvae_tf.training.loading import load_run, spec_to_read

    run = load_run(options.workdir)
    spec = spec_to_read(run.config, options.data_path)
    images, _ = chosen_images(load_split(spec, "test"), spec, "test", count=options.count)
    training, _ = chosen_images(load_split(spec, "train"), spec, "train", at_most=options.training_images)
    rows = []
    for task in options.tasks.split(","):
        operator, sigma, region = task_of(task, images.shape[1:3])
        values = measured(operator, images, sigma, seed=1)
        made = {"classical": _classical(task, values, images), "mmse": linear_mmse(operator, values, sigma, training)}
        seconds = {}
        variants = {"pnp": {"steps": 0}, "map": {"steps": 80, "pnp_steps": 0}} if options.variants else {}
        for name, settings in ({"model": {}} | variants).items():
            before = time.perf_counter()
            made[name] = run.model.restore(values, operator, sigma, batch_size=options.batch_size, **settings).numpy()
            seconds[name] = (time.perf_counter() - before) / len(images)
        rows.append({"task": task, "classical method": TASKS[task]} | _row(made, images, seconds, region))
    return {"images": len(images), "step": run.step, "rows": rows}


def task_of(task: str, size: tuple[int, int]) -> tuple[Any, float, np.ndarray | None]:
    """The operator, sigma, and the pixels of a hole `[height, width]`."""
    from nvae_tf.models.restoration import Mask, downsampling, gaussian_blur

    if task == "hole":
        height, width = size
        hole = np.zeros(size, bool)
        top, left = height // 3, width // 3
        hole[top : top + round(height / 2.8), left : left + round(width / 2.8)] = True
        return Mask(hole), 0.0, hole
    operators = {"x2": (downsampling(size, 2), 0.0), "noise": (Mask(), 0.2), "blur": (gaussian_blur(size, 1.5), 0.02)}
    return (*operators[task], None)


def psnr(made: np.ndarray, images: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Of every image, in dB, of all pixels or those of a region."""
    squares = np.square(made.astype(np.float64) - images)
    squares = squares if region is None else squares[:, region]
    return -10.0 * np.log10(np.maximum(squares.reshape(len(images), -1).mean(axis=1), 1e-10))


def linear_mmse(operator: Any, values: np.ndarray, sigma: float, training: np.ndarray) -> np.ndarray:
    """The linear estimate of images with the mean and covariance of the training images, in [0, 1]."""
    shape, flat = training.shape[1:], training.reshape(len(training), -1).astype(np.float64)
    mean, covariance = flat.mean(axis=0), np.cov(flat, rowvar=False)
    # Rows are the columns of A.
    matrix = np.reshape(operator.apply(np.eye(len(mean), dtype=np.float32).reshape(-1, *shape)), [len(mean), -1])
    cross = covariance @ matrix
    inner = matrix.T @ cross + max(sigma, 1e-3) ** 2 * np.eye(matrix.shape[1])
    residual = values.reshape(len(values), -1) - mean @ matrix
    return np.clip(mean + residual @ np.linalg.solve(inner, cross.T), 0.0, 1.0).reshape(-1, *shape)


def _classical(task: str, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """What the classical method makes of measurements; its parameter is the best for these images."""
    import tensorflow as tf
    from skimage import restoration

    if task == "x2":
        return np.clip(tf.image.resize(values, images.shape[1:3], "bicubic"), 0.0, 1.0)
    if task == "hole":
        hole = task_of(task, images.shape[1:3])[2]
        filled = [restoration.inpaint_biharmonic(image, hole, channel_axis=-1) for image in values]
        return np.clip(filled, 0.0, 1.0)
    if task == "noise":
        denoise = functools.partial(restoration.denoise_tv_chambolle, channel_axis=-1)
        return _best(_TV_WEIGHTS, denoise, values, images)
    distances = np.arange(-6, 7)
    kernel = np.exp(-0.5 * np.square(distances / 1.5))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2

    def deblurred(image: np.ndarray, steps: int) -> np.ndarray:
        channels = np.moveaxis(np.maximum(image, 1e-6), -1, 0)
        return np.stack([restoration.richardson_lucy(channel, kernel, steps) for channel in channels], axis=-1)

    return _best(_RICHARDSON_LUCY_STEPS, deblurred, values, images)


def _best(parameters: Any, restore: Callable, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    made = [np.clip([restore(image, parameter) for image in values], 0.0, 1.0) for parameter in parameters]
    return max(made, key=lambda candidates: psnr(candidates, images).mean())


def _row(made: dict, images: np.ndarray, seconds: dict, region: np.ndarray | None) -> dict[str, Any]:
    values = {name: psnr(candidates, images) for name, candidates in made.items()}
    row = {name: round(float(of_images.mean()), 2) for name, of_images in values.items()}
    row["better %"] = round(100.0 * float(np.mean(values["model"] > values["classical"])), 1)
    row["hole: classical, mmse, model"] = None
    if region is not None:
        in_hole = [float(psnr(made[name], images, region).mean()) for name in ("classical", "mmse", "model")]
        row["hole: classical, mmse, model"] = [round(value, 2) for value in in_hole]
    return row | {f"{name}: s/image": round(value, 3) for name, value in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("restoration", __doc__)
    parser.add_argument("--workdir", required=True, help="run folder of a model")
    parser.add_argument("--data_path", help="where its data are now, if not where it was trained")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {','.join(TASKS)} (default: all)")
    parser.add_argument("--variants", action="store_true", help="measure other settings of `restore` too")
    parser.add_argument("--count", type=results.at_least(1), default=100, help="test images (100)")
    parser.add_argument("--training_images", type=results.at_least(2), default=9600, help="of mmse, at most (9,600)")
    parser.add_argument("--batch_size", type=results.at_least(1), default=50, help="images restored at once (50)")
    options = parser.parse_args(arguments)
    if unknown := set(options.tasks.split(",")) - set(TASKS):
        parser.error(f"--tasks: {', '.join(unknown)}: must be some of {', '.join(TASKS)}")
    try:
        import skimage  # noqa: F401
    except ModuleNotFoundError:
        parser.error("the classical methods need scikit-image: pip install scikit-image")
    from nvae_tf.errors import start_tensorflow_quietly

    start_tensorflow_quietly()
    results.run(options, measure)


if __name__ == "__main__":
    main()
