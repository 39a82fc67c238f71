"""Measures how well a trained model knows images that it has not seen.

    python -m train.evaluate --workdir=runs/digits
    python -m train.evaluate --workdir=runs/cifar10 --importance_samples=1000 --checkpoint=best

Takes the latest checkpoint of the run folder, or the best, and prints, in nats per image and in bits per real value:

    NELBO                    the negative evidence lower bound: reconstruction + KL
    importance-weighted      a tighter bound, --importance_samples an image; the papers' test score

and the KL of every latent group, from the top of the hierarchy. The figures go to evaluation.json in the run
folder (evaluation-train.json for the training part). Binary data are binarised with the same --seed each
time. The time grows with the number of importance samples; for a first look take --importance_samples=10.

Exit code: 0 done, 2 a mistake in the command.
"""

from absl import flags

from nvae_tf.checkpoint_choice import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from nvae_tf.train_config import LARGEST_SEED
from train import command_line

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of train.main.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
IMPORTANCE_SAMPLES = flags.DEFINE_integer(
    "importance_samples",
    100,
    "Samples an image of the importance-weighted bound; 0 leaves it out.",
    lower_bound=0,
)
SPLIT = flags.DEFINE_enum("split", "test", ["test", "train"], "Part of the data set.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images at a time; that of the training if not given.", lower_bound=1
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Of the binarisation and of the samples.", lower_bound=0, upper_bound=LARGEST_SEED
)
DATA_PATH = flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP)


def main() -> None:
    """Evaluates, prints a table and writes the file."""
    start_tensorflow_quietly()
    from train.evaluation_report import evaluate_run

    evaluate_run(
        WORKDIR.value,
        SPLIT.value,
        IMPORTANCE_SAMPLES.value,
        BATCH_SIZE.value,
        SEED.value,
        DATA_PATH.value,
        CHECKPOINT.value,
    )


def run() -> None:
    """The command `nvae-evaluate`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
