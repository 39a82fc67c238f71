"""Learns a prior from which a trained model draws better samples: that of the top groups, reweighted.

    nvae-prior --workdir=runs/mine
    nvae-prior --workdir=runs/mine --groups=2
    nvae-generate --workdir=runs/mine --prior=reweighted --output=samples.png

Most of the mass of a VAE's prior lies where no image's posterior does. A classifier of each of the top --groups learns
to tell draws of the posteriors of training images from draws of the prior; its ratio of the two reweights the prior
(Aneja et al. 2021, arXiv 2010.02917). A latent is drawn as one of --proposals draws of the prior, below the top group
of half as many, by their ratios. The weights of the model stay as they are. --kind=mixture fits a mixture of Gaussians
to the top group instead: seconds.

Writes prior.npz into the run folder, for these weights; learn it again after more training. Prints the
cross-entropy of the classifiers for test images, of a draw of the posterior and one of the prior in nats (1.386 is
chance), and how many of the proposals are effective. See docs/prior.md.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import pathlib

from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, DATA_PATH_HELP, LARGEST_SEED, PRIOR_KINDS
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.files import check_writable
from nvae_tf.progress import StatusLine

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of nvae-train.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
GROUPS = flags.DEFINE_integer("groups", 1, "How many latent groups are reweighted, from the top.", lower_bound=1)
KIND = flags.DEFINE_enum(
    "kind", PRIOR_KINDS[0], PRIOR_KINDS, "What gives the ratio; a mixture is of the top group alone."
)
STEPS = flags.DEFINE_integer("steps", 3000, "Steps of the classifiers' training.", lower_bound=1)
PROPOSALS = flags.DEFINE_integer(
    "proposals", 100, "Draws of the prior of which one is chosen; half as many below the top group.", lower_bound=1
)
_BOUND_HELP = "Samples of the importance-weighted bounds, with and without this prior, of test images; 0 for none."
IMPORTANCE_SAMPLES = flags.DEFINE_integer("importance_samples", 0, _BOUND_HELP, lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Of all draws.", lower_bound=0, upper_bound=LARGEST_SEED)
DATA_PATH = flags.DEFINE_string("data_path", None, DATA_PATH_HELP)


def main() -> None:
    """Learns the prior, writes it and prints what was measured."""
    command_line.check_run_folder(WORKDIR.value)
    check_writable(pathlib.Path(WORKDIR.value), f"--workdir={WORKDIR.value}")
    start_tensorflow_quietly()
    from nvae_tf.runs.companions import prior_text
    from nvae_tf.training.prior import learn_prior

    settings = GROUPS, KIND, STEPS, PROPOSALS, IMPORTANCE_SAMPLES, CHECKPOINT, SEED, DATA_PATH
    about = learn_prior(WORKDIR.value, *(flag.value for flag in settings))
    StatusLine().keep(f"{prior_text(about)}\nwritten to {pathlib.Path(WORKDIR.value, 'prior.npz')}")


def run() -> None:
    """The command `nvae-prior`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
