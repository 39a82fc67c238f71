"""Calibrates a model's outlier scores with its training and test images.

    nvae-calibrate --workdir=runs/mine

The file outliers.npz in the run folder has the mean and covariance of the KL of each latent group and of the
reconstruction of training images, and the scores of test images, among which p-values are ranks: the model has not seen
these. With it `model.outlier_score` of `nvae_tf.load` gives the Mahalanobis distance and p-values, and `nvae-evaluate
--metrics=outliers` measures them. It belongs to these weights: run this again after more training. One pass over
--images images of each part. See docs/outliers.md.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import pathlib

from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, DATA_PATH_HELP
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.files import check_writable
from nvae_tf.progress import StatusLine

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of nvae-train.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
IMAGES = flags.DEFINE_integer(
    "images", 10_000, "Images of each part at most, spread over the part; 50 or more.", lower_bound=50
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images at a time; that of the training if not given.", lower_bound=1
)
DATA_PATH = flags.DEFINE_string("data_path", None, DATA_PATH_HELP)


def main() -> None:
    """Scores training images and writes the file."""
    command_line.check_run_folder(WORKDIR.value)
    check_writable(pathlib.Path(WORKDIR.value), f"--workdir={WORKDIR.value}")
    start_tensorflow_quietly()
    from nvae_tf.evaluation.outliers import calibrate_run
    from nvae_tf.runs.run_folder import RunFolder

    made = calibrate_run(*(flag.value for flag in (WORKDIR, CHECKPOINT, IMAGES, BATCH_SIZE, DATA_PATH)))
    ranked = f"p-values are ranks among {len(made.kl):,} test images, so at least {1 / (1 + len(made.kl)):.1g}"
    StatusLine().keep(f"written to {RunFolder(WORKDIR.value).outliers_file}; {ranked}")


def run() -> None:
    """The command `nvae-calibrate`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
