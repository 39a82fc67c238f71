"""The head of a model card for machines: the metadata of the Hugging Face Hub, as YAML.

The fields are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md. The Hub refuses a card whose
`license` it does not know, or whose `datasets` can't be identifiers of data sets.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from nvae_tf.config import DataSpec
from nvae_tf.reports.model_card.facts import RunFacts
from nvae_tf.reports.model_card.scores import Evaluation, Score

_TASK = "unconditional-image-generation"
_TAGS = ("nvae", "variational-autoencoder", "tensorflow")
# Of what a score was made with; the text has it once.
_TOLD_BELOW = ("weights", "tensorflow", "date")
# Sets of TensorFlow Datasets that the Hub has too.
_HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}
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
# JSON leaves these as they are, and YAML, or UTF-8, does not allow them.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def front_matter(facts: RunFacts) -> str:
    """The metadata between two lines of `---`."""
    return "\n".join(["---", *_yaml_lines(_metadata(facts), ""), "---"])


def hub_dataset(spec: DataSpec) -> str | None:
    """The Hub's identifier of a data set; None where it has none that is known to be the same."""
    return _HUB_DATASETS.get(spec.source_name) if spec.source == "tfds" else None


def _metadata(facts: RunFacts) -> dict[str, Any]:
    dataset = hub_dataset(facts.config.data)
    metadata: dict[str, Any] = {"library_name": "keras", "tags": list(_TAGS), "pipeline_tag": _TASK}
    if facts.origin is not None and facts.origin.license:
        metadata |= _license(facts.origin.license)
    if dataset:
        metadata["datasets"] = [dataset]
    results = [_result(evaluation, dataset) for evaluation in facts.evaluations if evaluation.scores]
    if results:
        metadata["model-index"] = [{"name": facts.name, "results": results}]
    return metadata


def _license(given: str) -> dict[str, str]:
    if given.lower() in _HUB_LICENSES:
        return {"license": given.lower()}
    if given.startswith(("https://", "http://")):
        return {"license": "other", "license_link": given}
    return {"license": "other", "license_name": _identifier(given)}


def _result(evaluation: Evaluation, dataset: str | None) -> dict[str, Any]:
    return {
        "task": {"type": _TASK},
        "dataset": {
            "type": dataset or _identifier(evaluation.dataset),
            "name": evaluation.dataset,
            "split": evaluation.split,
        },
        "metrics": [_metric(score) for score in evaluation.scores],
    }


def _metric(score: Score) -> dict[str, Any]:
    name = f"{score.name}, {score.unit}" if score.unit else score.name
    metric: dict[str, Any] = {"type": score.kind, "value": score.value, "name": name}
    arguments = {name: value for name, value in score.arguments.items() if name not in _TOLD_BELOW}
    if score.half_width_95 is not None:
        arguments["half_width_95"] = score.half_width_95
    return metric | ({"args": arguments} if arguments else {})


def _identifier(text: str) -> str:
    """Lower-case letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "other"


def _yaml_lines(value: Any, indent: str) -> list[str]:
    """The lines of a mapping or a list, in block style."""
    lines = []
    for key, item in value.items() if isinstance(value, Mapping) else ((None, item) for item in value):
        head = f"{indent}-" if key is None else f"{indent}{key}:"
        if not isinstance(item, Mapping | list):
            lines.append(f"{head} {_yaml_scalar(item)}")
        elif key is None:
            # A list's item begins on the line of its hyphen.
            first, *others = _yaml_lines(item, f"{indent}  ")
            lines += [f"{head} {first.lstrip()}", *others]
        else:
            lines += [head, *_yaml_lines(item, f"{indent}  ")]
    return lines


def _yaml_scalar(value: str | bool | float) -> str:
    """A scalar of JSON, which is one of YAML too; texts quoted."""
    if isinstance(value, float) and math.isfinite(value):
        text = repr(value)
        # YAML 1.1 takes a number without a point for a text.
        return text if "." in text else text.replace("e", ".0e")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
