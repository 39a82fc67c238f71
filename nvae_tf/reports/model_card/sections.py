"""The text of a model card, section by section."""

import shlex

from nvae_tf.reports.model_card.facts import RunFacts
from nvae_tf.reports.model_card.front_matter import hub_dataset
from nvae_tf.reports.model_card.markdown import code, code_block, paragraphs, picture, plain, table
from nvae_tf.reports.model_card.score_section import score_section

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
images = model.generate(16, temperature=0.7, seed=1)  # [16, {height}, {width}, {channels}] in [0, 1]
latents = model.encode(images, seed=1)
nats = model.score(images, importance_samples=100, seed=1)"""
_COMMANDS = """python -m train.generate {run} --output=samples.png
python -m train.evaluate {run}
python -m export.export_saved_model {run} --output=saved_model
python -m export.export_tflite {run} --output=decode.tflite --signature=decode"""
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
* A good likelihood does not make good pictures, nor the other way round. Likelihoods of images of another kind than the
  training images may be high: they do not tell whether an image belongs to these.
* Whether samples repeat training images has not been looked at for this card (`python -m train.generate nearest` shows
  those that are most like them)."""


def sections(facts: RunFacts) -> str:
    """The card without its head."""
    parts = {
        "The model": _model(facts),
        "How to use it": _use(facts),
        "Training data": _data(facts),
        "Training": _training(facts),
        "Scores": score_section(facts),
        "Limits and intended use": _LIMITS,
        "License": _license(facts),
        "Citation": code_block(_CITATION, "bibtex"),
    }
    title = f"# NVAE: {plain(facts.config.data.name)}"
    return paragraphs(title, *(f"## {heading}\n\n{text}" for heading, text in parts.items() if text))


def _model(facts: RunFacts) -> str:
    model, plan = facts.config.model, facts.plan
    text = (
        f"NVAE ({_PAPER}), a deep hierarchical variational autoencoder of images, in TensorFlow and Keras (`nvae_tf`). "
        "Groups of latent variables at several scales, each depending on those above it, make an image from the "
        "smallest scale to the largest."
    )
    groups = ", ".join(f"{len(scale.groups)} of {scale.height}x{scale.width}" for scale in plan.scales)
    rows = [
        [
            "images",
            f"{model.image_height}x{model.image_width}x{model.image_channels}, {_bits(model.num_bits)} a channel",
        ],
        ["likelihood", _LIKELIHOODS[model.likelihood]],
        ["latent groups", f"{plan.num_groups}: {groups}"],
        ["channels of a group's latent", str(plan.num_latent_per_group)],
        ["cells", code(model.cell_set)],
        ["normalizing flows a group", str(model.num_flows)],
    ]
    if facts.parameters is not None:
        rows.append(["parameters", f"{facts.parameters:,}"])
    if facts.step is not None:
        rows.append(["newest checkpoint", f"step {facts.step:,}"])
    if facts.best_step is not None:
        rows.append(["checkpoint with the best test score", f"step {facts.best_step:,}"])
    samples = facts.samples and paragraphs(
        f"Samples at temperature 0.7 after step {facts.samples[1]:,}:", picture("samples", facts.samples[0])
    )
    return paragraphs(text, table(["", ""], rows), samples)


def _use(facts: RunFacts) -> str:
    model = facts.config.model
    size = {"height": model.image_height, "width": model.image_width, "channels": model.image_channels}
    checkpoint = ', checkpoint="best"' if facts.checkpoint == "best" else ""
    use = _USE.format(place=ascii(facts.name), checkpoint=checkpoint, **size)
    commands = _COMMANDS.format(run=f"--workdir={shlex.quote(facts.name)} --checkpoint={facts.checkpoint}")
    return paragraphs(
        f"With `nvae_tf` installed, and this folder as {code(facts.name)}:",
        code_block(use, "python"),
        code_block(commands, "bash"),
    )


def _data(facts: RunFacts) -> str:
    data, model = facts.config.data, facts.config.model
    source = " ".join(filter(None, [data.source, data.source_name]))
    rows = [["data set", code(data.name)], ["source", code(source)]]
    if hub_dataset(data):
        rows.append(["on the Hub", code(hub_dataset(data))])
    if facts.images is not None:
        counts = f"{facts.images.train:,} for training, {facts.images.test:,} for testing"
        rows.append(["images", counts])
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
        steps.append(f"brought to {_bits(data.num_bits)} a channel")
    if data.horizontal_flip:
        steps.append("training images mirrored at random")
    if (model.network_height, model.network_width) != (model.image_height, model.image_width):
        steps.append(f"in a frame of zeros of {model.network_height}x{model.network_width}, which does not count")
    rows.append(["processing", "; ".join(steps) or "none"])
    return table(["", ""], rows)


def _parts(facts: RunFacts) -> str:
    """How the images were split, which `images.json` says since runs note it."""
    data, held_out = facts.config.data, facts.images and facts.images.held_out
    drawn = f"{data.test_fraction:g} of the images, drawn at random (seed {data.split_seed}), for testing"
    if held_out:
        return f"{drawn}, the others for training: the source has no parts of its own"
    own = f"{code(data.train_split)} for training, {code(data.test_split)} for testing"
    if held_out is None and data.source in _MAY_HOLD_OUT:
        return f"{own}, or, if the source has no such parts, {drawn}"
    return own


def _training(facts: RunFacts) -> str:
    origin, config = facts.origin, facts.config
    if facts.is_imported:
        sha256 = f" (SHA-256 {code(origin.sha256)})" if origin.sha256 else ""
        return f"The weights were trained elsewhere and imported from {code(origin.source_file)}{sha256}."
    source = None
    if config.train.initialise_from:
        source = f"The run started from the weights of {code(config.train.initialise_from)}{_first_origin(facts)}."
    elif origin is not None and origin.source_file:
        source = f"Imported weights were trained further{_first_origin(facts)}."
    train, optimizer, objective = config.train, config.optimizer, config.objective
    rows = [
        ["steps", f"{objective.total_steps:,}" + _reached(facts)],
        ["images a step", _images_a_step(facts)],
        ["optimizer", f"Adamax, weight decay {optimizer.weight_decay:g}"],
        ["learning rate", _learning_rate(facts)],
        ["KL warm-up", f"over {objective.kl_anneal_portion:g} of the steps"],
        ["spectral and batch-norm regularisation", f"{objective.regularisation:g}"],
        ["running mean of the weights", f"{optimizer.ema_momentum:g}" if optimizer.ema_momentum else "none"],
        ["precision", code(train.precision)],
        ["seed", str(train.seed)],
    ]
    return paragraphs(source, table(["", ""], rows), "All settings are in [config.json](config.json).")


def _learning_rate(facts: RunFacts) -> str:
    """As it was set, and as it was: a run may end before its warm-up, or go on with half the rate."""
    optimizer, rates = facts.config.optimizer, facts.learning_rates
    epochs = "" if optimizer.warmup_epochs is None else f" (epochs: {optimizer.warmup_epochs:g})"
    rate, least = optimizer.learning_rate, optimizer.learning_rate_min
    words = f"set to {rate:g}, after a warm-up{epochs} falling as a cosine to {least:g}"
    if rates is None:
        return words
    return (
        f"{words}; in [metrics.csv](metrics.csv) it is {rates.highest:g} at most, after step {rates.highest_step:,}, "
        f"and {rates.last:g} in the end, after step {rates.last_step:,}"
    )


def _reached(facts: RunFacts) -> str:
    total = facts.config.objective.total_steps
    if facts.step is None or facts.step >= total:
        return ""
    return f", {facts.step:,} of them done"


def _images_a_step(facts: RunFacts) -> str:
    batch = facts.config.train.batch_size
    a_step = facts.images.a_step if facts.images is not None else None
    return f"{batch:,} a replica" if a_step is None else f"{a_step:,}"


def _first_origin(facts: RunFacts) -> str:
    """Where the weights came from that a run started with, in words that follow others."""
    origin = facts.origin
    if origin is None or origin.source_file in (None, facts.config.train.initialise_from):
        return ""
    if not origin.sha256:
        return f" (made from those of {code(origin.source_file)})"
    return f" (imported from {code(origin.source_file)}, SHA-256 {code(origin.sha256)})"


def _license(facts: RunFacts) -> str:
    origin = facts.origin
    if origin is None or not origin.license:
        if facts.is_imported:
            return "None is recorded. Whoever published the imported weights has stated their terms."
        if origin is not None or facts.config.train.initialise_from:
            return "None is recorded. That of the weights that this run started from may apply."
        return "None has been stated for these weights."
    license = plain(origin.license)
    if origin.source_file is None:
        return f"The weights are under: {license}."
    if facts.is_imported:
        return f"The imported weights are under: {license}."
    return f"The weights that training started from are under: {license}. It may apply to what was made of them."


def _bits(number: int) -> str:
    return f"{number} bit{'' if number == 1 else 's'}"
