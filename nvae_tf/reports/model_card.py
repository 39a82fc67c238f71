"""The model card of a run folder: its README.md, in the form that Hugging Face reads."""

import html
import math
import pathlib
import re
import shlex
import types
from collections.abc import Callable

from huggingface_hub import ModelCard, ModelCardData

from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.models import NVAE
from nvae_tf.progress import counted
from nvae_tf.reports.run_facts import TASK, gather, hub_dataset, identifier
from nvae_tf.runs.origin import write_origin
from nvae_tf.runs.run_folder import RunFolder

MARKER = "<!-- Yours: what stands below this line is kept. -->"
_TEMPLATE = pathlib.Path(__file__).with_name("templates") / "model_card.md"
# The usual ones of https://huggingface.co/docs/hub/repositories-licenses; the Hub takes any other as `other`.
_HUB_LICENSES = frozenset(
    """
    apache-2.0 mit openrail creativeml-openrail-m bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 unlicense unknown other
    """.split()
)


def write_model_card(folder: RunFolder, parameters: int | None = None, place: str | None = None) -> bool:
    """Writes the card of a run from the files of its folder, or brings it up to date.

    The text below `MARKER` in the file is kept, byte by byte. A file without that line is somebody's own and stays as
    it is. For a fine-tuned run the origin of its source's weights is noted in the folder too: the source may be gone
    later. `parameters` is how many numbers are trained; `place` is what others give to `nvae_tf.load`,
    "hf://user/repo", where the folder is to be shared.

    Returns whether the file is the run's card now. Raises FileNotFoundError or ValueError where settings or
    `origin.json` can't be read, OSError where a file can't be written.
    """
    file = folder.card_file
    before = file.read_bytes() if file.is_file() else None
    kept = b"\n" if before is None else _below_marker(before)
    facts = gather(folder, parameters)
    if facts.origin is not None and not folder.origin_file.is_file():
        write_origin(folder, facts.origin)
    if kept is None:
        return False
    card = ModelCard.from_template(
        _metadata(facts),
        template_path=str(_TEMPLATE),
        **{"facts": facts, "place": place, "hub_dataset": hub_dataset(facts.config.data), "counted": counted},
        **{"plain": _plain, "code": _code, "in_block": _in_block, "quoted": ascii, "shell_word": shlex.quote},
    )
    # A name may have the marker in it, on a line of its own.
    card.text = card.text.replace(MARKER, MARKER.replace("<!--", "<! --"))
    # The name of a folder need not be Unicode.
    content = f"{card}\n\n{MARKER}".encode(errors="replace") + kept
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
    """Returns what follows the first line that is the marker; None without such a line."""
    # Names in the head may have the marker in them.
    head = re.match(rb"---\r?\n.*?\n---\r?\n", content, re.DOTALL)
    line = re.compile(rb"^[ \t]*" + re.escape(MARKER.encode()) + rb"(?=[ \t\r]*$)", re.MULTILINE)
    marker = line.search(content, head.end() if head else 0)
    return content[marker.end() :] if marker else None


def _metadata(facts: types.SimpleNamespace) -> ModelCardData:
    """Returns the head of the card.

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
        # For the name "keras" the Hub would show how to load Keras files; it shows nothing for a name it does not know.
        library_name="nvae_tf",
        tags=["nvae", "variational-autoencoder", "tensorflow", "keras"],
        pipeline_tag=TASK,
        datasets=[dataset] if dataset else None,
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


def _in_block(text: str) -> str:
    """Returns a text that can't end the block of code that it stands in."""
    return text.replace("```", "'''")
