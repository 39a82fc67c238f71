"""The facts that the files of a run folder have, and its model card, README.md, in the form of Hugging Face."""

import html
import math
import os
import pathlib
import re
import shlex
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nvae_tf import errors, progress, schemas
from nvae_tf.config import real_number
from nvae_tf.evaluation.table import rows, table
from nvae_tf.files import atomic_write
from nvae_tf.latent_plan import latent_plan
from nvae_tf.models import NVAE
from nvae_tf.runs.checkpoints import steps_of_files
from nvae_tf.runs.companions import prior_text, read_about
from nvae_tf.runs.run_folder import ImageCounts, MetricsFile, RunFolder, origin_of_run, read_run_config

# The errors that a damaged file, or one of another version, may lead to.
UNREADABLE = (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
MARKER = "<!-- Yours: what stands below this line is kept. -->"
_TASK = "unconditional-image-generation"
# The entries of an evaluation file that the Hub gets.
_BOUNDS = ("importance_weighted_nats", "importance_weighted_bits_per_dim", "nelbo_nats", "bits_per_dim")
_SCORES = (*_BOUNDS, "reconstruction_nats", "kl_nats", "fid", "frechet")
# How scores were made, and what more is said of distances; another type makes the file unreadable.
_MADE_WITH = dict(num_images=int, seed=int, checkpoint=str, step=int, checkpoint_sha256=str)
_DISTANCE_MADE_WITH = dict.fromkeys(("samples", "real_images", "batch_norm_iterations"), int)
_DISTANCE_MADE_WITH |= dict(extractor=str, extractor_is_published=bool, temperature=str)
# Data sets of TensorFlow Datasets that the Hub is known to have too, and its identifiers of them.
_HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}
# The usual ones of https://huggingface.co/docs/hub/repositories-licenses; the Hub takes any other as `other`.
_HUB_LICENSES = """
    apache-2.0 mit openrail creativeml-openrail-m bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 unlicense unknown other
    """.split()


def gather(folder: RunFolder, parameters: int | None = None) -> types.SimpleNamespace:
    """Reads the facts of a run that its card and page show; None, or nothing, for what is not known or can't be read.

    `parameters` is how many numbers are trained. Raises ValueError for damaged settings.
    """
    config = read_run_config(folder)
    steps, best = (steps_of_files(place, "index") for place in (folder.checkpoints, folder.best_checkpoints))
    files = [folder.evaluation_file(split) for split in ("test", "train")]
    hub_dataset = _HUB_DATASETS.get(config.data.source_name) if config.data.source == "tfds" else None
    evaluations = [evaluation for file in files if (evaluation := _read(_evaluation, file, hub_dataset))]
    # The step that the reweighted prior was learned for, and what was measured of it.
    prior = _read(read_about, folder.prior_file)
    measured = prior and _read(prior_text, prior[1])
    samples = sorted(folder.samples.glob(f"step-{'[0-9]' * 8}.png"))
    return types.SimpleNamespace(
        name=folder.path.resolve().name,
        config=config,
        hub_dataset=hub_dataset,
        plan=latent_plan(config.model),
        parameters=parameters,
        step=steps[-1] if steps else None,
        best_step=best[-1] if best else None,
        images=_read(ImageCounts.read, folder.images_file),
        origin=origin_of_run(folder, config.train.initialize_from),
        evaluations=evaluations,
        test_evaluation=next((each for each in evaluations if each.metrics["split"] == "test"), None),
        training_score=_read(_training_score, folder.metrics_file),
        environment=_read(schemas.read_object, folder.environment_file),
        samples=(f"samples/{samples[-1].name}", int(samples[-1].stem[5:])) if samples else None,
        prior=(prior[0], measured) if measured else None,
    )


def _read(reader: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a reader returns; None where its file is missing or damaged."""
    try:
        return reader(*arguments)
    except UNREADABLE:
        return None


def _training_score(file: pathlib.Path) -> tuple[int, float, float]:
    """The last step of `metrics.csv`, its test NELBO in nats and in bits, NaN for a density."""
    step, last = max(MetricsFile(file).rows.items())
    nelbo = real_number("test_nelbo_nats", float(last["test_nelbo_nats"]), "must be finite")
    return step, nelbo, float(last["test_bits_per_dim"])


def _identifier(text: str) -> str:
    """Returns a name in the form that the Hub takes: lower-case letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "other"


def _evaluation(file: pathlib.Path, dataset: str | None) -> types.SimpleNamespace:
    """An evaluation file: its metrics, their table and rows, scores for the Hub, and pictures."""
    metrics = schemas.read_object(file)
    metrics["split"] = str(metrics["split"])
    metrics.pop("data", None)  # a folder of this machine, which a public card does not name
    drawn = [metrics.get(metric, {}) for metric in ("latents", "outliers", "probe")]
    named = [path for metric in drawn for path in metric.get("pictures", ())]
    # Paths in the run folder alone: a folder may come from others.
    inside = [path for path in named if not os.path.isabs(path) and ".." not in pathlib.PurePath(path).parts]
    results = [*_results(metrics, dataset or _identifier(metrics["dataset"]))]
    for name in [name for name, value in metrics.items() if isinstance(value, str)]:
        # A name must not look like other lines; commands have a line each.
        kept = "\n" if name == "command" else ""
        metrics[name] = "".join(letter if letter.isprintable() or letter in kept else " " for letter in metrics[name])
    return types.SimpleNamespace(
        metrics=metrics,
        results=results,
        table=table(metrics),
        rows=[*rows(metrics)],
        pictures=[path for path in inside if (file.parent / path).is_file()],
    )


def _results(metrics: Mapping[str, Any], dataset: str) -> Iterator[EvalResult]:
    """Yields the scores of an evaluation file as the Hub has them; ValueError for a number that is not finite."""
    place = {"task_type": _TASK, "dataset_type": dataset, "dataset_name": str(metrics["dataset"])}
    for key in [key for key in _SCORES if key in metrics]:
        value = metrics[key]
        how = {name: kind(metrics[name]) for name, kind in _MADE_WITH.items() if metrics.get(name) is not None}
        if key.startswith("importance"):
            how["importance_samples"] = int(metrics["importance_samples"])
        if isinstance(value, Mapping):
            how |= {name: kind(value[name]) for name, kind in _DISTANCE_MADE_WITH.items()}
            if value.get("prior") == "reweighted":
                how["prior"] = "reweighted"
            # Samples are compared with training images, whatever part was evaluated.
            how.pop("num_images", None)
            value = value["value"]
        names = {"metric_type": key.removesuffix("_nats"), "metric_name": key.replace("_", " ")}
        names |= {"dataset_split": metrics["split"], "metric_value": real_number(key, value, "must be finite")}
        yield EvalResult(**place, **names, metric_args=how)


def write_model_card(folder: RunFolder, parameters: int | None = None, place: str | None = None) -> None:
    """Writes the card of a run from the files of its folder, or brings it up to date.

    The text below `MARKER` in the file is kept, byte by byte. A file without that line is somebody's own and stays as
    it is. For a fine-tuned run the origin of its source's weights is noted in the folder too: the source may be gone
    later. `parameters` is how many numbers are trained; `place` is what others give to `nvae_tf.load`,
    "hf://user/repo", where the folder is to be shared.

    Raises FileNotFoundError or ValueError where settings or `origin.json` can't be read, OSError where a file can't be
    written.
    """
    file = folder.card_file
    before = file.read_bytes() if file.is_file() else None
    # What follows the marker, on a line of its own.
    line = re.compile(rb"^[ \t]*" + re.escape(MARKER.encode()) + rb"(?=[ \t\r]*$)", re.MULTILINE)
    _, *kept = (b"", b"\n") if before is None else line.split(before, 1)
    facts = gather(folder, parameters)
    if facts.origin is not None and not folder.origin_file.is_file():
        atomic_write(folder.origin_file, facts.origin.text())
    if not kept:
        return
    card = ModelCard.from_template(
        _metadata(facts),
        template_path=str(pathlib.Path(__file__).with_name("templates") / "model_card.md"),
        **{"facts": facts, "place": place, "counted": progress.counted},
        **{"plain": _plain, "code": _code, "quoted": ascii, "shell_word": shlex.quote},
        # A text that can't end the block of code that it stands in.
        in_block=lambda text: text.replace("```", "'''"),
    )
    # A name may have the marker in it, and need not be Unicode.
    text = str(card).replace(MARKER, MARKER.replace("<!--", "<! --"))
    content = f"{text}\n\n{MARKER}".encode(errors="replace") + kept[0]
    if content != before:
        atomic_write(file, content)


def update_model_card(folder: RunFolder, model: NVAE, report: Callable[[str], None]) -> None:
    """Writes the card of a run and its built model; where that fails, reports it in a line, and the command goes on."""
    try:
        write_model_card(folder, sum(math.prod(weight.shape) for weight in model.trainable_variables))
    except (OSError, ValueError) as error:
        report(f"the model card was not written: {errors.first_line(error)}")


def _metadata(facts: types.SimpleNamespace) -> ModelCardData:
    """Returns the head of the card.

    The Hub refuses a card whose `license` it does not know, or whose `datasets` can't be identifiers of data sets.
    """
    given, license = facts.origin and facts.origin.license, {}
    if given and given.lower() in _HUB_LICENSES:
        license = {"license": given.lower()}
    elif given and given.startswith(("https://", "http://")):
        license = {"license": "other", "license_link": given}
    elif given:
        license = {"license": "other", "license_name": _identifier(given)}
    results = [result for evaluation in facts.evaluations for result in evaluation.results]
    return ModelCardData(
        # For the name "keras" the Hub would show how to load Keras files; it shows nothing for a name it does not know.
        library_name="nvae_tf",
        tags=["nvae", "variational-autoencoder", "tensorflow", "keras"],
        pipeline_tag=_TASK,
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        model_name=facts.name if results else None,
        eval_results=results or None,
        **license,
    )


def _plain(text: object) -> str:
    """Returns a text as Markdown that is shown as it is, on one line."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _code(text: object) -> str:
    """Returns a text as Markdown in the letters of code, on one line, fit for tables too."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
