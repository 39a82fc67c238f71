"""Learns a prior from which a trained model draws better samples: the prior of the top groups, reweighted.

    nvae-prior --workdir=runs/mine
    nvae-prior --workdir=runs/mine --groups=2
    nvae-generate --workdir=runs/mine --prior=reweighted --output=samples.png

A classifier of each of the top --groups learns to tell draws of the posteriors of training images from draws of the
prior; its ratio of the two reweights the prior (Aneja et al. 2021, arXiv 2010.02917). A latent is one of --proposals
draws of the prior, below the top group of half as many. --kind=mixture fits a mixture of Gaussians to the top group
instead: seconds. Writes prior.npz into the run folder, for these weights; learn it again after more training. Prints
the cross-entropy of the classifiers for test images in nats (1.386 is chance), and how many of the proposals are
effective. See docs/prior.md.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line, config, errors, progress

_KIND_HELP = "What gives the ratio; a mixture is of the top group alone."
_BOUND_HELP = "Samples of the importance-weighted bounds, with and without this prior, of test images; 0 for none."


def main(
    workdir: Annotated[str, "Run folder of nvae-train."],
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
    groups: Annotated[int, "How many latent groups are reweighted, from the top.", 1] = 1,
    kind: Annotated[str, _KIND_HELP, *config.PRIOR_KINDS] = config.PRIOR_KINDS[0],
    steps: Annotated[int, "Steps of the classifiers' training.", 1] = 3000,
    proposals: Annotated[int, "Draws of the prior of which one is chosen; half as many below the top group.", 1] = 100,
    importance_samples: Annotated[int, _BOUND_HELP, 0] = 0,
    seed: Annotated[int, "Of all draws.", 0, config.LARGEST_SEED] = 0,
    data_path: Annotated[str | None, config.DATA_PATH_HELP] = None,
) -> None:
    """Learns the prior, writes it and prints what was measured."""
    command_line.check_run_folder(workdir)
    errors.start_tensorflow_quietly()
    from nvae_tf.runs.companions import prior_text
    from nvae_tf.training.prior import learn_prior

    about = learn_prior(workdir, groups, kind, steps, proposals, importance_samples, checkpoint, seed, data_path)
    progress.StatusLine().print(f"{prior_text(about)}\nwritten to {pathlib.Path(workdir, 'prior.npz')}")


run = command_line.command(main)
