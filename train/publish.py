"""Publishes a run on the Hugging Face Hub, from where `nvae_tf.load("hf://user/name")` loads its model.

    hf auth login
    nvae-publish --workdir=runs/mine --repo=user/name

What is published is the run folder without the optimizer's state and without places of this machine. The repository is
made, public, if there is none; make it on the Hub before to have it private. Publishing again replaces what was there.

The token is from `hf auth login`, or from the environment variable HF_TOKEN; HF_ENDPOINT names another Hub.

Exit code: 0 done, 2 a mistake in the command, or a Hub that does not take the run.
"""

from typing import Annotated

from nvae_tf import command_line, config, errors, progress


def main(
    workdir: Annotated[str, command_line.RUN_HELP],
    repo: Annotated[str, "Name on the Hub, user/name."],
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
) -> None:
    """Publishes the run and prints where it is."""
    errors.start_tensorflow_quietly()
    from nvae_tf.reports.publishing import publish_run
    from nvae_tf.runs.sharing import HUB

    published = publish_run(workdir, repo, checkpoint)
    scores = "" if published.has_scores else ", without scores: nvae-evaluate has not measured this checkpoint"
    size = f"{published.num_files} files, {published.num_bytes / 1e6:.1f} MB"
    text = f"Published {workdir}, step {published.step:,}: {published.url} ({size}{scores})."
    progress.StatusLine().print(f'{text} nvae_tf.load("{HUB}{repo}") loads it.')


run = command_line.command(main)
