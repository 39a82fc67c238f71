"""Publishes a run on the Hugging Face Hub, from where `nvae_tf.load("hf://user/name")` loads its model.

    hf auth login
    nvae-publish --workdir=runs/mine --repo=user/name

What is published is the run folder without the optimizer's state and without places of this machine (data.path,
data.cache, train.initialize_from): settings, weights, model card, scores, curves and the newest samples, and the
reweighted prior and the outlier calibration that belong to these weights. The repository is made, public, if there is
none; make it on the Hub before to have it private. Publishing again replaces what was there, in one commit.

The token is that of `hf auth login`, or of the environment variable HF_TOKEN; HF_ENDPOINT names another Hub.

Exit code: 0 done, 2 a mistake in the command, or a Hub that does not take the run.
"""

from absl import flags

from nvae_tf import command_line
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.progress import StatusLine
from nvae_tf.runs.sharing import HUB, check_repo_name

WORKDIR = flags.DEFINE_string("workdir", None, command_line.RUN_HELP, required=True)
REPO = flags.DEFINE_string("repo", None, "Name on the Hub, user/name.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)


def main() -> None:
    """Publishes the run and prints where it is."""
    check_repo_name(REPO.value, f"--repo={REPO.value}")
    command_line.run_folder(WORKDIR.value)
    start_tensorflow_quietly()
    from nvae_tf.reports.publishing import publish_run

    published = publish_run(WORKDIR.value, REPO.value, CHECKPOINT.value)
    scores = "" if published.has_scores else ", without scores: nvae-evaluate has not measured this checkpoint"
    StatusLine().keep(
        f"Published {WORKDIR.value}, step {published.step:,}: {published.url} ({published.num_files} files, "
        f'{published.num_bytes / 1e6:.1f} MB{scores}). nvae_tf.load("{HUB}{REPO.value}") loads it.'
    )


def run() -> None:
    """The command `nvae-publish`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
