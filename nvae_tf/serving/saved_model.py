"""Writes a model as one version of a SavedModel, and checks it before anyone can see it."""

import hashlib
import inspect
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf import errors, files, schemas
from nvae_tf.config import ExperimentConfig, __version__, check_choice, config_to_dict, read_config
from nvae_tf.data.pipeline import chosen_images
from nvae_tf.data.sources import load_split
from nvae_tf.generation.image_grid import pixels_of
from nvae_tf.latent_plan import inference_bytes_per_image
from nvae_tf.layers import FoldedPass, FoldedWeights, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.runs import loading
from nvae_tf.runs.checkpoints import checkpoint_sha256
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.serving import outputs, verification
from nvae_tf.serving.signatures import Signatures
from nvae_tf.serving.verification import Arrays, all_differences, recorded, side_of_record, verified

# Half-precision weights that change an output by more of its largest value are not published.
LARGEST_DIFFERENCE = 0.2
# The memory that the rows of one request may take unless the export says otherwise.
REQUEST_BYTES = 2 * 2**30


class Origin(NamedTuple):
    """Where weights come from: the checkpoint, its evaluation, the run's settings, test images; see `origin_of`."""

    source: Mapping[str, Any] = {}
    scores: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    examples: Mapping[str, Any] | None = None


def export_saved_model(
    model: NVAE,
    output: str | os.PathLike,
    version: int = 1,
    weights: str = "float32",
    origin: Origin | None = None,
    most_rows: int | None = None,
) -> float:
    """Writes `output/version`, a SavedModel; returns how far its outputs are from the model's, relative to the largest.

    It has the weights that the signatures use, with weight normalization and batch norm folded into kernels and
    biases: no optimizer state, no Python, no path of this machine. Before it appears it is run in a process that can't
    import this package. Its numbers must be, up to rounding, the numbers of the model with kernels stored as `weights`
    (one of `WEIGHTS`), which may differ from the float32 model's by `LARGEST_DIFFERENCE`.

    A request may have `most_rows` rows; if not given, the number that takes `REQUEST_BYTES`, at least `BATCH_ROWS`.
    Raises ValueError, and writes nothing, where the version can't be made or gives other numbers than the model.
    """
    errors.require("tensorflow_serving.apis", "serving")
    check_choice("weights", weights, outputs.WEIGHTS)
    output, row_bytes = pathlib.Path(output), inference_bytes_per_image(model.config)
    most_rows = max(most_rows or max(REQUEST_BYTES // row_bytes, outputs.BATCH_ROWS), verification.ROWS)
    folded = folded_weights(model._stacks(), weights)
    # Equal layers become loops, so that a deep model is traced, loaded and warmed up soon.
    signatures = Signatures(model, lambda: FoldedPass(scanned=True, folded=folded), most_rows)
    with files.atomic_folder(output / str(version), lambda: outputs.check_version_is_free(output, version)) as folder:
        model_record = recorded(Signatures(model))
        record = model_record if weights == "float32" else recorded(signatures, side_of_record(model_record, "inputs"))
        signatures.write(folder, _folded_variables(model, folded))
        try:
            differences = verified(folder, record)
            if weights != "float32":
                differences = all_differences(*(side_of_record(each, "outputs") for each in (record, model_record)))
                worst = max(differences, key=differences.get)
                if not differences[worst] <= LARGEST_DIFFERENCE:
                    amount = f"{worst} is off by {differences[worst]:.2g} of its largest value"
                    raise ValueError(f"weights={weights} change too much: {amount}; export float32")
        except ValueError as error:
            raise ValueError(f"{error}. It was not published") from error
        facts = dict(weights=weights, difference_from_model=differences, most_rows=most_rows, bytes_of_row=row_bytes)
        facts["weights_sha256"] = model._weights_sha256()  # before they are folded, as compressed files have it
        _write_assets(folder, output.resolve().name, signatures, record, origin or Origin(), facts)
    return max(differences.values())


def _folded_variables(model: NVAE, folded: FoldedWeights) -> list[tf.Variable]:
    """Returns all weights that a pass with folded weights reads, in an order that the architecture alone decides."""
    in_stacks = {id(weight) for stack in model._stacks() for weight in stack.weights}
    others = [weight.value for weight in model.top_down.weights if id(weight) not in in_stacks]
    return [*(variable for slices in folded.values() for variable in tf.nest.flatten(slices)), *others]


def load_export(folder: str | os.PathLike) -> tuple[ExperimentConfig | None, NVAE, FoldedWeights, dict[str, Any]]:
    """Returns an export's settings, model, folded weights in float32, and the origin of the weights.

    Only a `FoldedPass` with these weights gives the export's numbers. The settings are None for an export of a model
    without a run. ValueError for a damaged export, or one from before weights were stored by place.
    """
    folder = pathlib.Path(folder)
    outputs.check_is_export(folder)
    source = json.loads((folder / outputs.ASSETS / "source.json").read_text())
    settings = folder / outputs.ASSETS / "config.json"
    config, is_from_run = read_config(settings), "data" in json.loads(settings.read_text())
    model = NVAE(config.model)
    folded = folded_weights(model._stacks(), source["weights"])
    checkpoint = tf.train.Checkpoint(folded=_folded_variables(model, folded))
    with errors.wrap_read_errors(f"{folder}: its weights can't be read by place (", "); export the run again"):
        checkpoint.read(str(folder / "variables" / "variables")).assert_existing_objects_matched()

    def exact(weight: tf.Variable) -> tf.Variable:
        return tf.Variable(tf.cast(weight, tf.float32), trainable=False)

    in_float32 = {stack: tf.nest.map_structure(exact, slices) for stack, slices in folded.items()}
    return config if is_from_run else None, model, in_float32, source


def coding_model(place: str) -> Any:
    """The model for lossless files of a run folder, a bundled one, "hf://user/repo", a .keras file, or of one export.

    Raises what `nvae_tf.load` raises; ValueError for a SavedModel that can't decode.
    """
    from nvae_tf.models.lossless import ModelWithWeights, with_weights  # needs the extra `compress`

    if (pathlib.Path(place) / "saved_model.pb").is_file():
        _, model, folded, about = load_export(place)
        if about["weights"] != "float32" or "weights_sha256" not in about:
            raise ValueError(f"{place}: only exports by this version with weights=float32 decode; export it again")
        return ModelWithWeights(model, about["weights_sha256"][:20], folded=folded)
    if place.endswith(".keras"):
        return with_weights(loading.load(place))
    run = loading.load_run(place)
    return with_weights(run.model, run.class_names)


def origin_of(run: loading.TrainedRun, workdir: pathlib.Path) -> Origin:
    """Returns the origin of a run's model."""
    source = source_of(run)
    scores = RunFolder(workdir).scores(source["checkpoint_sha256"])
    return Origin(source, scores, config_to_dict(run.config.without_places()), example_images(run.config))


def example_images(config: ExperimentConfig) -> dict[str, np.ndarray] | None:
    """Returns 16 test images of a run (`chosen_images`): `images` uint8 `[count, H, W, C]`, as models see them.

    With labels also `labels` `[count]`, and `classes`, the names. None where the images can't be read here.
    """
    try:
        spec = config.data_at(None)
        if spec.source == "tfds":
            from nvae_tf.data.tfds import tfds_is_prepared

            if not tfds_is_prepared(spec):
                return None  # an export downloads nothing
        source = load_split(spec, "test")
        images, labels, _ = chosen_images(source, spec, "test", at_most=16)
    except (OSError, ValueError):
        return None
    examples = {"images": pixels_of(images)}
    return examples if labels is None else examples | {"labels": labels, "classes": np.array(source.class_names)}


def cached_export(place: str) -> pathlib.Path:
    """Returns the folder of versions of a run's export, which is made unless the cache has an export by this code.

    `place` is what `nvae_tf.load` takes. The folder has the name of the model.
    """
    run_folder = loading.find_run_folder(place)
    key = hashlib.sha256(checkpoint_sha256(loading.TrainedRun(run_folder).checkpoint).encode())
    run_files = [run_folder / name for name in ("config.json", "evaluation.json", "prior.npz", "outliers.npz")]
    for file in (*sorted(pathlib.Path(__file__).parents[1].rglob("*.py")), *run_files):
        if file.is_file():
            key.update(file.read_bytes())
    name = os.path.basename(place.partition("@")[0] if place.startswith("hf://") else os.path.abspath(place))
    folder = files.cache_folder() / "exports" / key.hexdigest()[:16] / name
    if not (folder / "1" / "saved_model.pb").is_file():
        print(f"Exporting {place} to {folder}, once, half a minute or more ...", flush=True)
        run = loading.load_run(run_folder)
        export_saved_model(run.model, folder, origin=origin_of(run, run_folder))
    return folder


def source_of(run: loading.TrainedRun) -> dict[str, Any]:
    """Returns the checkpoint's step, its kind and the SHA-256 of its files, for JSON."""
    return {
        "checkpoint": "best" if pathlib.Path(run.checkpoint).parent.name == "best" else "latest",
        "step": run.step,
        "checkpoint_sha256": checkpoint_sha256(run.checkpoint),
        "running_means_of_weights": run.has_ema,
    }


def _write_assets(
    export: pathlib.Path, model_name: str, signatures: Signatures, record: Arrays, origin: Origin, facts: dict[str, Any]
) -> None:
    """Writes `assets.extra/` of an export; a server reads only the warm-up requests."""
    folder = export / outputs.ASSETS
    checkout = pathlib.Path(__file__).resolve().parents[2]
    versions = {"nvae_tf": __version__, "git_revision": files.git_revision(checkout), "tensorflow": tf.__version__}
    contents = {
        "config": origin.settings or {"model": config_to_dict(signatures.model.config)},
        "latents": signatures.latent_layout(),
        "source": {**origin.source, **facts, **versions},
        "signatures": _described(signatures, record),
    }
    if origin.scores is not None:
        contents["evaluation"] = origin.scores
    for name, content in contents.items():
        files.atomic_write(folder / f"{name}.json", json.dumps(dict(content), indent=2, allow_nan=False) + "\n")
    if origin.examples is not None:
        schemas.write_arrays(folder / outputs.EXAMPLES, origin.examples)
    _write_warm_up(folder / "tf_serving_warmup_requests", model_name, signatures.names, record)
    schemas.write_arrays(export / verification.RECORD, record)
    outputs.write_digests(export)


def _described(signatures: Signatures, record: Arrays) -> dict[str, Any]:
    """Returns the documentation, inputs and outputs of each signature, for JSON."""
    described = {}
    for name in signatures.names:
        as_files, method = name.endswith(outputs.PNG_SUFFIX), getattr(signatures, name.removesuffix(outputs.PNG_SUFFIX))
        # The inputs below say which optional inputs the model has.
        text = re.sub(r"\n +\*\*.*", "", inspect.getdoc(method))
        if as_files:
            text = text.replace("`image` `[batch, H, W, C]`", "`image_bytes` `[batch]`, PNG files")
        pictures = "bytes of files (image_bytes)" if as_files else "float32 in [0, 1]"
        described[name] = {"documentation": text, "pictures": pictures}
        for side in ("inputs", "outputs"):
            described[name][side] = {
                key: {"dtype": tf.as_dtype(array.dtype).name, "shape": ["batch", *array.shape[1:]]}
                for key, array in side_of_record(record, f"{side}/{name}").items()
            }
    return described


def _write_warm_up(file: pathlib.Path, model_name: str, names: Sequence[str], record: Arrays) -> None:
    """Writes a request for all outputs of every signature and the default, which a server runs before it serves."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(file)) as writer:
        for name in (*names, outputs.DEFAULT_SIGNATURE):
            arrays = side_of_record(record, f"inputs/{'sample' if name == outputs.DEFAULT_SIGNATURE else name}")
            tensors = {argument: tf.make_tensor_proto(array) for argument, array in arrays.items()}
            request = predict_pb2.PredictRequest(inputs=tensors)
            request.model_spec.name, request.model_spec.signature_name = model_name, name
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
