"""What the settings that control the KL do to a small model of the digits.

    python -m benchmarks.kl_control [--steps=400] [--batch_size=64] [--figure=FILE.png] [--json=FILE]

Trains the preset digits, with fewer steps, for several `objective.kl_final_weight` and `objective.free_nats`. Prints
the KL, the reconstruction and the active units of the test digits, and how much of the reconstruction the tenth of the
latent channels with the largest KL achieves. With the model of weight 1 and no free nats it also moves test digits
along the difference of two classes' mean latents (training digits), and asks a support vector machine, which knows only
real digits, how often it sees the other class then.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.digits_quality import classifier, digits
from nvae_tf.errors import start_tensorflow_quietly

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
FREE_NATS = (0.0, 4.0, 8.0, 16.0)
CLASSES = ((3, 8), (1, 7), (4, 9), (0, 6))
STRENGTHS = (0.0, 1.0, 1.5, 2.0)
SETTINGS = {"kl_final_weight": WEIGHTS, "free_nats": FREE_NATS}
_DEFAULTS = {"kl_final_weight": 1.0, "free_nats": 0.0}


def trained(steps: int, batch_size: int, **objective: float) -> Any:
    """A model of the digits after so many steps."""
    import tensorflow as tf

    from nvae_tf.config import experiment_config, preset, resolve_lengths
    from nvae_tf.models.nvae import model_for_training

    settings = experiment_config(preset("digits"))
    settings = dataclasses.replace(settings, objective=dataclasses.replace(settings.objective, **objective))
    images = _images("train")[0]
    an_epoch = len(images) // batch_size
    model = model_for_training(resolve_lengths(settings, an_epoch, steps), an_epoch, steps).model
    batches = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images), seed=0).repeat()
    model.fit(batches.batch(batch_size, drop_remainder=True), steps_per_epoch=steps, shuffle=False, verbose=0)
    return model


def measure(model: Any) -> dict[str, float]:
    """Of the test digits, in nats per image."""
    from nvae_tf.evaluation.latent_usage import active_units
    from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
    from nvae_tf.models.latents import active_channels

    images = _images("test")[0]
    found = LikelihoodEvaluator(model, len(images)).evaluate([images])
    kept = active_channels(found.kl_per_channel_nats)
    with_kept = LikelihoodEvaluator(model, len(images), kept_channels=kept).evaluate([images])
    return {
        "kl_nats": found.kl_nats,
        "reconstruction_nats": found.reconstruction_nats,
        "nelbo_nats": found.nelbo_nats,
        "active_units": int(active_units(found.kl_per_channel_nats, model.plan.latent_shapes()).sum()),
        "reconstruction_with_a_tenth_nats": with_kept.reconstruction_nats,
    }


def seen_after_moving(model: Any) -> dict[str, list[float]]:
    """For pairs of classes: which part of the first's test digits the machine sees as the second, at each strength."""
    from nvae_tf.generation.sampling import latent_direction, move_images

    machine, (images, labels), (test_images, test_labels) = classifier(), _images("train"), _images("test")
    seen = {}
    for start, target in CLASSES:
        direction = latent_direction(model, images[labels == target], images[labels == start])
        moved = move_images(model, test_images[test_labels == start], direction, STRENGTHS, mean=True)
        found = machine.predict(moved.reshape(-1, 256) > 0.5).reshape(moved.shape[:2])
        seen[f"{start} to {target}"] = (found == target).mean(axis=0).tolist()
    return seen


def _images(split: str) -> tuple[np.ndarray, np.ndarray]:
    bitmaps, labels = digits(split)
    return bitmaps.reshape(-1, 16, 16, 1).astype(np.float32), labels


def draw(rows: list[dict[str, float]], file: pathlib.Path) -> None:
    """KL, reconstruction and active units over each of the settings."""
    from matplotlib.figure import Figure

    figure = Figure((8.0, 3.2), 100, layout="constrained")
    most_units = 1.1 * max(row["active_units"] for row in rows)
    for axes, (name, values) in zip(figure.subplots(1, 2), SETTINGS.items(), strict=True):
        of_setting = [_row(rows, name, value) for value in values]
        places = range(len(values))
        for key, label, color in (("kl_nats", "KL", "#0a63c4"), ("reconstruction_nats", "reconstruction", "#c2410c")):
            axes.plot(places, [row[key] for row in of_setting], "o-", color=color, label=label)
        axes.set(xlabel=f"objective.{name}", ylabel="nats per image", ylim=(0.0, None))
        axes.set_xticks(places, map("{:g}".format, values))
        units = axes.twinx()
        units.plot(places, [row["active_units"] for row in of_setting], "s--", color="#4b5563", label="active units")
        units.set(ylabel="active units", ylim=(0, most_units))
        lines = [*axes.lines, *units.lines]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _row(rows: list[dict[str, float]], name: str, value: float) -> dict[str, float]:
    wanted = _DEFAULTS | {name: value}
    return next(row for row in rows if wanted.items() <= row.items())


def main() -> None:
    parser = results.benchmark_parser("kl_control", __doc__)
    parser.add_argument("--steps", type=results.at_least(10), default=400)
    parser.add_argument("--batch_size", type=results.at_least(1), default=64)
    parser.add_argument("--figure", type=pathlib.Path, help="write a figure of the table there, .png")
    options = parser.parse_args()
    start_tensorflow_quietly()
    rows, seen = [], {}
    columns = "kl_final_weight", "free_nats", "kl_nats", "reconstruction_nats", "nelbo_nats", "active_units"
    columns += ("reconstruction_with_a_tenth_nats",)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    every = [{"kl_final_weight": value} for value in WEIGHTS] + [{"free_nats": value} for value in FREE_NATS if value]
    for changed in every:
        settings = _DEFAULTS | changed
        model = trained(options.steps, options.batch_size, **settings)
        rows.append(settings | measure(model))
        print("| " + " | ".join(f"{rows[-1][name]:.4g}" for name in columns) + " |", flush=True)
        if settings == _DEFAULTS:
            seen = seen_after_moving(model)
    print("\n| moved | " + " | ".join(f"strength {strength:g}" for strength in STRENGTHS) + " |")
    print("|" + "---|" * (1 + len(STRENGTHS)))
    for pair, parts in seen.items():
        print(f"| {pair} | " + " | ".join(f"{part:.0%}" for part in parts) + " |")
    if options.figure:
        draw(rows, options.figure)
    results.write_json({"rows": rows, "seen_after_moving": seen, "strengths": STRENGTHS}, options.json)


if __name__ == "__main__":
    main()
