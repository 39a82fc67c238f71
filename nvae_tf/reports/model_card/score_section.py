"""The scores of a model card: tables, and how each was made."""

from nvae_tf.reports.model_card.facts import RunFacts
from nvae_tf.reports.model_card.markdown import code, code_block, paragraphs, picture, plain, table
from nvae_tf.reports.model_card.scores import Evaluation, Score


def score_section(facts: RunFacts) -> str:
    """All evaluations; before there is one, the last score in training, or how scores are made."""
    parts = [_evaluation(evaluation) for evaluation in facts.evaluations if evaluation.scores]
    if not any(evaluation.split == "test" for evaluation in facts.evaluations):
        parts.append(_training_score(facts))
    return paragraphs(*parts) or "None yet: `python -m train.evaluate` makes them."


def _evaluation(evaluation: Evaluation) -> str:
    rows = [[score.name, _value(score), score.unit, _interval(score), _made_with(score)] for score in evaluation.scores]
    made = evaluation.made_with
    about = [_images(evaluation), _checkpoint(evaluation)]
    if "seed" in made:
        about.append(f"seed {made['seed']}")
    if "tensorflow" in made:
        about.append(f"TensorFlow {plain(made['tensorflow'])}")
    if "date" in made:
        about.append(f"last written {plain(made['date'])}")
    pictures = (picture(path.rpartition("/")[2].rpartition(".")[0], path) for path in evaluation.pictures)
    return paragraphs(
        f"### On the {plain(evaluation.split)} images",
        table(["", "value", "", "95% interval", "made with"], rows),
        f"{'; '.join(filter(None, about))}. Made by:",
        code_block(evaluation.command, "bash"),
        *pictures,
    )


def _value(score: Score) -> str:
    if score.kind == "active_units":
        return f"{score.value:,}"
    return f"{score.value:.4f}" if score.unit == "bits/dim" else f"{score.value:.3f}"


def _interval(score: Score) -> str:
    return "" if score.half_width_95 is None else f"± {score.half_width_95:.3f}"


def _made_with(score: Score) -> str:
    how = score.arguments
    if "importance_samples" in how:
        return f"{how['importance_samples']:,} importance samples an image"
    if "active_from_nats" in how:
        return f"KL above {how['active_from_nats']:g} nats in the mean"
    if score.kind != "fid":
        return "one sample an image"
    published = "" if how["extractor_is_published"] else ", not known as the published Inception graph"
    readjusted = how["batch_norm_iterations"]
    return (
        f"{how['samples']:,} samples at temperature {how['temperature']} against {how['real_images']:,} training "
        f"images; features of {code(how['extractor'])}{published}"
        + (f"; batch norm readjusted in {readjusted:,} iterations" if readjusted else "")
    )


def _images(evaluation: Evaluation) -> str | None:
    count = evaluation.made_with.get("num_images")
    if count is None:
        return None
    return f"{count:,} images of the {plain(evaluation.split)} part of {code(evaluation.dataset)}"


def _checkpoint(evaluation: Evaluation) -> str | None:
    made = evaluation.made_with
    if "step" not in made:
        return None
    parts = [f"{plain(made.get('checkpoint', ''))} checkpoint of step {made['step']:,}".strip()]
    if "weights" in made:
        parts.append(plain(made["weights"]))
    if "checkpoint_sha256" in made:
        parts.append(f"SHA-256 {code(made['checkpoint_sha256'])}")
    return ", ".join(parts)


def _training_score(facts: RunFacts) -> str | None:
    score = facts.training_score
    return score and (
        f"In training, after step {score.step:,}, the negative evidence lower bound of the test images was "
        f"{score.nelbo_nats:g} nats an image, {score.bits_per_dim:g} bits per dimension, with one sample an image "
        "([metrics.csv](metrics.csv) has it for the steps before)."
    )
