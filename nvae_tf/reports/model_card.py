"""The model card of a run folder: its README.md, in the form that Hugging Face reads."""

import html
import math
import re
import shlex
import urllib.parse
from collections.abc import Callable, Iterable, Sequence

from huggingface_hub import ModelCardData

from nvae_tf.config import ObjectiveConfig
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.models import NVAE
from nvae_tf.progress import counted
from nvae_tf.reports.run_facts import TASK, Evaluation, RunFacts, gather, hub_dataset, identifier
from nvae_tf.runs.origin import write_origin
from nvae_tf.runs.run_folder import RunFolder

MARKER = "<!-- Yours: what stands below this line is kept. -->"
# https://huggingface.co/docs/hub/repositories-licenses, without those of single large models; others are `other`.
_HUB_LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense
    zlib pddl lgpl-lr unknown other
    """.split()
)
_PAPER = "[Vahdat & Kautz 2020](https://arxiv.org/abs/2007.03898)"
_LIKELIHOODS = {
    "bernoulli": "Bernoulli, of binary pixels",
    "logistic_mixture": "discretized mixture of logistics",
    "normal": "soft-clamped Normal, a density on [-1, 1]: scores of other likelihoods can't be compared with it",
}
# Sources that hold images out where there is no test part.
_MAY_HOLD_OUT = ("auto", "arrays", "folder")
_USE = """import nvae_tf

model = nvae_tf.load({place}{checkpoint})
images = model.generate(16, temperature=0.7, seed=1{labels})  # [16, {height}, {width}, {channels}] in [0, 1]
latents = model.encode(images, seed=1{labels})
nats = model.score(images, importance_samples=100, seed=1{labels})"""
_GENERATE = "nvae-generate {run} --output=samples.png"
_EXPORT = """nvae-export {run} --output=saved_model
nvae-export-tflite {run} --output=decode.tflite --signature=decode"""
_MOST_CLASS_NAMES = 20
# It writes into the run folder.
_EVALUATE = "nvae-evaluate {run}"
_CITATION = """@inproceedings{vahdat2020nvae,
  title     = {{NVAE}: A Deep Hierarchical Variational Autoencoder},
  author    = {Vahdat, Arash and Kautz, Jan},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {33},
  year      = {2020}
}"""
_LIMITS = """* For research on generative models: samples, reconstructions, likelihoods, latents.
* The model knows images like those it was trained on, of one size and number of channels, and nothing of their meaning.
  What is uneven in the training images is uneven in the samples.
* A good likelihood does not make good images, nor the other way round. Likelihoods of images of another kind than the
  training images may be high: they do not show whether an image belongs to these.
* Whether samples repeat training images has not been looked at for this card (`nvae-generate nearest` shows
  those that are most like them)."""


def write_model_card(folder: RunFolder, parameters: int | None = None, place: str | None = None) -> bool:
    """Writes the card of a run from the files of its folder, or brings it up to date.

    The text below `MARKER` in the file is kept, byte by byte. A file without that line is somebody's own and stays as
    it is; an up-to-date one is not written again. For a fine-tuned run the origin of its source's weights is noted in
    the folder too: the source may be gone later.

    `parameters` is how many numbers of the model are trained, if known. `place` is what others give to `nvae_tf.load`
    and to commands, "hf://user/repo", where the folder is to be shared; otherwise it is the folder's name. Returns
    whether the file is the run's card now; False where it is somebody's own.

    Raises:
      FileNotFoundError, ValueError: the folder is no run folder, or its settings or `origin.json` can't be read.
      OSError: a file can't be written.
    """
    file = folder.card_file
    before = file.read_bytes() if file.is_file() else None
    kept = b"\n" if before is None else _below_marker(before)
    facts = gather(folder, parameters)
    if facts.origin is not None and not folder.origin_file.is_file():
        write_origin(folder, facts.origin)
    if kept is None:
        return False
    # A name may have the marker in it, on a line of its own.
    body = _sections(facts, place).replace(MARKER, MARKER.replace("<!--", "<! --"))
    # A folder's name need not be Unicode.
    content = f"---\n{_metadata(facts)}\n---\n\n{body}\n\n{MARKER}".encode(errors="replace") + kept
    if content != before:
        with atomic_file(file) as partial:
            partial.write_bytes(content)
    return True


def keep_model_card(folder: RunFolder, model: NVAE, report: Callable[[str], None]) -> None:
    """Writes the card of a run and its built model; where that fails, reports it in a line, and the command goes on."""
    try:
        write_model_card(folder, sum(math.prod(weight.shape) for weight in model.trainable_variables))
    except (OSError, ValueError) as error:
        report(f"the model card was not written: {first_line(error)}")


def _below_marker(content: bytes) -> bytes | None:
    """What follows the first line that is the marker, its end of line included; None where there is no such line."""
    # Names in the head may have the marker in them.
    head = re.match(rb"---\r?\n.*?\n---\r?\n", content, re.DOTALL)
    place = head.end() if head else 0
    for line in content[place:].splitlines(keepends=True):
        if line.strip() == MARKER.encode():
            return content[place + len(line.rstrip()) :]
        place += len(line)
    return None


def _metadata(facts: RunFacts) -> str:
    """The head in YAML.

    The Hub refuses a card whose `license` it does not know, or whose `datasets` can't be identifiers of data sets.
    """
    dataset = hub_dataset(facts.config.data)
    given, license = facts.origin and facts.origin.license, {}
    if given and given.lower() in _HUB_LICENSES:
        license = {"license": given.lower()}
    elif given and given.startswith(("https://", "http://")):
        license = {"license": "other", "license_link": given}
    elif given:
        license = {"license": "other", "license_name": identifier(given)}
    results = [result for evaluation in facts.evaluations for result in evaluation.results]
    return ModelCardData(
        # Of "keras" the Hub would show how to load files of Keras. Of a name that it does not know it shows nothing.
        library_name="nvae_tf",
        tags=["nvae", "variational-autoencoder", "tensorflow", "keras"],
        pipeline_tag=TASK,
        datasets=[dataset] if dataset else None,
        model_name=facts.name if results else None,
        eval_results=results or None,
        **license,
    ).to_yaml()


def _sections(facts: RunFacts, place: str | None) -> str:
    """The card without its head."""
    parts = {
        "The model": _model(facts),
        "How to use it": _use(facts, place),
        "Training data": _data(facts),
        "Training": _training(facts),
        "Scores": _scores(facts),
        "Limits and intended use": _LIMITS,
        "License": _license(facts),
        "Citation": _code_block(_CITATION, "bibtex"),
    }
    title = f"# NVAE: {_plain(facts.config.data.name)}"
    return _paragraphs(title, *(f"## {heading}\n\n{text}" for heading, text in parts.items() if text))


def _model(facts: RunFacts) -> str:
    model, plan = facts.config.model, facts.plan
    text = (
        f"NVAE ({_PAPER}), a deep hierarchical variational autoencoder of images, in TensorFlow and Keras (`nvae_tf`). "
        "Groups of latent variables at several scales, each depending on those above it, make an image from the "
        "smallest scale to the largest."
    )
    groups = ", ".join(f"{len(scale.groups)} of {scale.height}x{scale.width}" for scale in plan.scales)
    size = model.image_height, model.image_width, model.image_channels
    rows = [
        ["images", f"{'x'.join(map(str, size))}, {counted(model.num_bits, 'bit')} a channel"],
        ["likelihood", _LIKELIHOODS[model.likelihood]],
        ["latent groups", f"{plan.num_groups}: {groups}"],
        ["channels of a group's latent", str(plan.num_latent_per_group)],
        ["cells", _code(model.cell_set)],
        ["normalizing flows a group", str(model.num_flows)],
    ]
    if model.num_classes:
        rows.append(["classes", _classes(facts)])
    if facts.parameters is not None:
        rows.append(["parameters", f"{facts.parameters:,}"])
    if facts.step is not None:
        rows.append(["newest checkpoint", f"step {facts.step:,}"])
    if facts.best_step is not None:
        rows.append(["checkpoint with the best test score", f"step {facts.best_step:,}"])
    if _has_prior(facts):
        rows.append(["reweighted prior", _plain(facts.prior[1])])
    samples = facts.samples and _paragraphs(
        f"Samples at temperature 0.7 after step {facts.samples[1]:,}:", _picture("samples", facts.samples[0])
    )
    return _paragraphs(text, _table(rows), samples)


def _classes(facts: RunFacts) -> str:
    """How many there are, their names if they are recorded, and how often training left them out."""
    names = (facts.images and facts.images.class_names) or ()
    more = ["..."] if len(names) > _MOST_CLASS_NAMES else []
    listed = f", from 0 on: {', '.join([*map(_code, names[:_MOST_CLASS_NAMES]), *more])}" if names else ""
    return f"{facts.config.model.num_classes:,}{listed}; label dropout {facts.config.train.label_dropout:g}"


def _has_prior(facts: RunFacts) -> bool:
    """Whether the checkpoint of the card's commands is that which the reweighted prior was learned for."""
    step = facts.best_step if facts.checkpoint == "best" else facts.step
    return facts.prior is not None and facts.prior[0] == step


def _use(facts: RunFacts, place: str | None) -> str:
    model = facts.config.model
    size = {"height": model.image_height, "width": model.image_width, "channels": model.image_channels}
    checkpoint = ', checkpoint="best"' if facts.checkpoint == "best" else ""
    labels = ", labels=0" if model.num_classes else ""
    use = _USE.format(place=ascii(place or facts.name), checkpoint=checkpoint, labels=labels, **size)
    if _has_prior(facts):
        use += f'\nimages = model.generate(16, prior="reweighted", seed=1{labels})  # better samples, at temperature 1'
    lines = [_GENERATE, _EXPORT, *([] if place else [_EVALUATE])]
    run = f"--workdir={shlex.quote(place or facts.name)} --checkpoint={facts.checkpoint}"
    return _paragraphs(
        "With `nvae_tf` installed:" if place else f"With `nvae_tf` installed, and this folder as {_code(facts.name)}:",
        _code_block(use, "python"),
        _code_block("\n".join(lines).format(run=run), "bash"),
    )


def _data(facts: RunFacts) -> str:
    data, model = facts.config.data, facts.config.model
    source = " ".join(filter(None, [data.source, data.source_name]))
    rows = [["data set", _code(data.name)], ["source", _code(source)]]
    if hub_dataset(data):
        rows.append(["on the Hub", _code(hub_dataset(data))])
    if facts.images is not None:
        rows.append(["images", f"{facts.images.train:,} for training, {facts.images.test:,} for testing"])
    rows.append(["parts", _parts(facts)])
    steps = []
    if data.stacked_images > 1:
        steps.append(f"{data.stacked_images} images drawn at random are the channels of one")
    if data.crop_box is not None:
        steps.append(f"cut to the box {tuple(data.crop_box)} (left, top, right, bottom)")
    if data.resize != "none":
        steps.append(f"resized to {data.height}x{data.width} ({data.resize})")
    if data.binarise:
        steps.append("each pixel drawn afresh from Bernoulli(intensity) at every access")
    elif data.file_bits is not None and data.num_bits < data.file_bits:
        steps.append(f"brought to {counted(data.num_bits, 'bit')} a channel")
    if data.horizontal_flip:
        steps.append("training images mirrored at random")
    if (model.network_height, model.network_width) != (model.image_height, model.image_width):
        steps.append(f"in a frame of zeros of {model.network_height}x{model.network_width}, which does not count")
    rows.append(["processing", "; ".join(steps) or "none"])
    return _table(rows)


def _parts(facts: RunFacts) -> str:
    """How the images were split, which `images.json` says since runs note it."""
    data, held_out = facts.config.data, facts.images and facts.images.held_out
    drawn = f"{data.test_fraction:g} of the images, drawn at random (seed {data.split_seed}), for testing"
    if held_out:
        return f"{drawn}, the others for training: the source has no parts of its own"
    own = f"{_code(data.train_split)} for training, {_code(data.test_split)} for testing"
    if held_out is None and data.source in _MAY_HOLD_OUT:
        return f"{own}, or, if the source has no such parts, {drawn}"
    return own


def _training(facts: RunFacts) -> str:
    origin, config = facts.origin, facts.config
    if facts.is_imported:
        sha256 = f" (SHA-256 {_code(origin.sha256)})" if origin.sha256 else ""
        return f"The weights were trained elsewhere and imported from {_code(origin.source_file)}{sha256}."
    source = None
    if config.train.initialise_from:
        source = f"The run started from the weights of {_code(config.train.initialise_from)}{_first_origin(facts)}."
    elif origin is not None and origin.source_file:
        source = f"Imported weights were trained further{_first_origin(facts)}."
    train, optimizer, objective = config.train, config.optimizer, config.objective
    total, a_step = objective.total_steps, facts.images and facts.images.a_step
    done = "" if facts.step is None or facts.step >= total else f", {facts.step:,} of them done"
    final = "" if objective.kl_final_weight == 1.0 else f", to a weight of {objective.kl_final_weight:g}"
    rows = [
        ["steps", f"{total:,}{done}"],
        ["images a step", f"{train.batch_size:,} a replica" if a_step is None else f"{a_step:,}"],
        ["optimizer", f"Adamax, weight decay {optimizer.weight_decay:g}"],
        ["learning rate", _learning_rate(facts)],
        ["KL warm-up", f"over {objective.kl_anneal_portion:g} of the steps{final}"],
        *_kl_rows(objective),
        ["spectral and batch-norm regularization", f"{objective.regularisation:g}"],
        [
            "exponential moving average (EMA) of the weights",
            f"{optimizer.ema_momentum:g}" if optimizer.ema_momentum else "none",
        ],
        ["precision", _code(train.precision)],
        ["seed", str(train.seed)],
    ]
    return _paragraphs(source, _table(rows), "All settings are in [config.json](config.json).")


def _kl_rows(objective: ObjectiveConfig) -> list[list[str]]:
    """What few runs set."""
    rows = []
    if objective.kl_scale_weights:
        weights = ", ".join(f"{weight:g}" for weight in objective.kl_scale_weights)
        rows.append(["KL weights of the scales", f"{weights} (the smallest scale first)"])
    if objective.free_nats:
        rows.append(["free nats a group", f"{objective.free_nats:g}"])
    return rows


def _learning_rate(facts: RunFacts) -> str:
    """As it was set, and as it was: a run may end before its warm-up, or go on with half the rate."""
    optimizer = facts.config.optimizer
    epochs = "" if optimizer.warmup_epochs is None else f" (epochs: {optimizer.warmup_epochs:g})"
    rate, least = optimizer.learning_rate, optimizer.learning_rate_min
    words = f"set to {rate:g}, after a warm-up{epochs} falling as a cosine to {least:g}"
    if facts.learning_rates is None:
        return words
    (highest, highest_step), (last, last_step) = facts.learning_rates
    return (
        f"{words}; in [metrics.csv](metrics.csv) it is {highest:g} at most, after step {highest_step:,}, "
        f"and {last:g} in the end, after step {last_step:,}"
    )


def _first_origin(facts: RunFacts) -> str:
    """Where the weights came from that a run started with, in words that follow others."""
    origin = facts.origin
    if origin is None or origin.source_file in (None, facts.config.train.initialise_from):
        return ""
    if not origin.sha256:
        return f" (made from those of {_code(origin.source_file)})"
    return f" (imported from {_code(origin.source_file)}, SHA-256 {_code(origin.sha256)})"


def _license(facts: RunFacts) -> str:
    origin = facts.origin
    if origin is None or not origin.license:
        if facts.is_imported:
            return "None is recorded. Whoever published the imported weights has stated their terms."
        if origin is not None or facts.config.train.initialise_from:
            return "None is recorded. That of the weights that this run started from may apply."
        return "None has been stated for these weights."
    license = _plain(origin.license)
    if origin.source_file is None:
        return f"The weights are under: {license}."
    if facts.is_imported:
        return f"The imported weights are under: {license}."
    return f"The weights that training started from are under: {license}. It may apply to what was made of them."


def _scores(facts: RunFacts) -> str:
    """All evaluations; before there is one, the last score in training, or how scores are made."""
    parts = [_evaluation(evaluation) for evaluation in facts.evaluations if evaluation.results]
    if facts.training_score and not facts.test_evaluation:
        step, nats, bits = facts.training_score
        parts.append(
            f"In training, after step {step:,}, the negative evidence lower bound of the test images was {nats:g} nats "
            f"an image, {bits:g} bits per dimension, with one sample an image "
            "([metrics.csv](metrics.csv) has it for the steps before)."
        )
    return _paragraphs(*parts) or "None yet: `nvae-evaluate` makes them."


def _evaluation(evaluation: Evaluation) -> str:
    return _paragraphs(
        f"### On the {_plain(evaluation.split)} images",
        _code_block(evaluation.table, "text"),
        f"Made {_plain(evaluation.made)}, by:",
        _code_block(evaluation.command, "bash"),
        *(_picture(path.rpartition("/")[2].rpartition(".")[0], path) for path in evaluation.pictures),
    )


# Markdown, with texts from settings and file names made harmless.


def _plain(text: str) -> str:
    """A text that is shown as it is, on one line."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: object) -> str:
    """A text in the letters of code, on one line, fit for tables too."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _code_block(text: str, language: str) -> str:
    # A name in the text must not end the block.
    return f"```{language}\n{text.replace('```', chr(39) * 3)}\n```"


def _table(rows: Iterable[Sequence[str]]) -> str:
    """A table of names and values."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [("", ""), ("---", "---"), *rows])


def _picture(words: str, path: str) -> str:
    """A picture file of the run folder."""
    return f"![{_plain(words)}]({urllib.parse.quote(path)})"


def _paragraphs(*parts: str | None) -> str:
    """The parts that there are, with a line between them."""
    return "\n\n".join(part for part in parts if part)
