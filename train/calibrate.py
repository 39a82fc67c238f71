"""Calibrates a model's outlier scores with its training and test images.

    nvae-calibrate --workdir=runs/mine

Writes outliers.npz into the run folder. With it `model.outlier_score` of `nvae_tf.load` gives the Mahalanobis distance
and p-values, and `nvae-evaluate --metrics=outliers` measures them. It belongs to these weights: run this again after
more training. One pass over --images images of each part. See docs/outliers.md.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted.
"""

from typing import Annotated

from nvae_tf import command_line, config, errors, progress


def main(
    workdir: Annotated[str, "Run folder of nvae-train."],
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
    images: Annotated[int, "Images of each part at most, spread over the part; 50 or more.", 50] = 10_000,
    batch_size: Annotated[int | None, "Images at a time; by default the training's number.", 1] = None,
    data_path: Annotated[str | None, config.DATA_PATH_HELP] = None,
) -> None:
    """Scores training images and writes the file."""
    command_line.check_run_folder(workdir)
    errors.start_tensorflow_quietly()
    from nvae_tf.evaluation.outliers import calibrate_run
    from nvae_tf.runs.run_folder import RunFolder

    made = calibrate_run(workdir, checkpoint, images, batch_size, data_path)
    ranked = f"p-values are ranks among {len(made.kl):,} test images, so at least {1 / (1 + len(made.kl)):.1g}"
    progress.StatusLine().print(f"written to {RunFolder(workdir).outliers_file}; {ranked}")


run = command_line.command(main)
