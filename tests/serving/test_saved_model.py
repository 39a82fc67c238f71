import dataclasses
import json
import re
import shutil
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from nvae_tf.config import ExperimentConfig, read_config
from nvae_tf.data import data_spec
from nvae_tf.layers import folded_weights
from nvae_tf.models import NVAE
from nvae_tf.runs import loading
from nvae_tf.runs.checkpoints import checkpoint_sha256
from nvae_tf.schemas import write_arrays
from nvae_tf.serving import saved_model, verification
from nvae_tf.serving.outputs import DIGESTS, check_version_is_free, write_digests
from nvae_tf.serving.saved_model import cached_export, example_images, export_saved_model, load_export
from nvae_tf.serving.signatures import SIGNATURES, Signatures
from nvae_tf.serving.tflite import folded_signatures, run_images
from nvae_tf.serving.verification import RECORD, read_record, verified
from tests import FIXTURES, ROOT, refuses
from tests.serving.conftest import VANILLA_CONFIG, exported
from tests.serving.model_servers import IMAGES
from tests.tiny_model import flat, tiny_config

FIRST_EXPORT = FIXTURES / "first_layout" / "saved_model" / "1"


def test_settings_origin_and_latent_layout_travel_with_the_export(folder, model):
    assert folder.name == "3" and [entry.name for entry in folder.parent.iterdir()] == ["3"]
    # Readable for a server that runs as another user, as far as the user's umask lets.
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == stat.S_IMODE(folder.parent.stat().st_mode) & 0o077
    assert read_config(folder / "assets.extra" / "config.json").model == model.config
    names = ("source", "evaluation", "latents")
    source, scores, layout = (json.loads((folder / "assets.extra" / f"{name}.json").read_text()) for name in names)
    assert source.items() >= {"step": 1200, "weights": "float32", "tensorflow": tf.__version__}.items()
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}(-dirty)?", source["git_revision"])
    assert max(source["difference_from_model"].values()) < 1e-5 and scores == {"nelbo_nats": 3.5}
    assert list(map(tuple, layout["shapes"])) == list(model.plan.latent_shapes())
    assert layout["total"] == sum(map(np.prod, model.plan.latent_shapes()))


def test_inputs_and_outputs_are_named_typed_batch_first_and_described(folder, model):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    outputs = dict.fromkeys(("sample", "decode", "decode_upper_groups", "reconstruct"), "image image_uint8 valid")
    outputs |= {"encode": "kl latent valid", "score": "bits_per_dim kl_per_group nats valid"}
    outputs |= {"compose": "image image_uint8 latent valid", "outlier_score": "kl kl_map kl_sum nelbo_at_mean valid"}
    types = {"seed": "int64", "num_groups": "int32", "keep": "int32", "image_uint8": "uint8"}
    types |= {"image_bytes": "string", "valid": "bool"}
    described = json.loads((folder / "assets.extra" / "signatures.json").read_text())
    for name in SIGNATURES:
        wanted = outputs[name.removesuffix("_png")]
        wanted = wanted.replace("image image_uint8", "image_bytes") if name.endswith("_png") else wanted
        inputs = [spec.name for spec in Signatures(model).input_specs(name)]
        assert (list(described[name]["inputs"]), sorted(definitions[name].outputs)) == (inputs, wanted.split())
        for key, tensor in {**definitions[name].inputs, **definitions[name].outputs}.items():
            form = (described[name]["inputs"] | described[name]["outputs"])[key]
            assert form["dtype"] == tf.as_dtype(tensor.dtype).name == types.get(key, "float32")
            assert form["shape"] == ["batch", *(size.size for size in tensor.tensor_shape.dim[1:])]
            assert tensor.tensor_shape.dim[0].size == -1


@pytest.mark.slow
def test_the_documentation_of_a_signature_names_its_own_inputs_and_outputs(conditional_folder):
    described = json.loads((conditional_folder / "assets.extra" / "signatures.json").read_text())
    for name, signature in described.items():
        args, _, returns = signature["documentation"].partition("Returns:")
        assert "**" not in args and set(re.findall(r"^  (\w+): ", args, re.MULTILINE)) <= set(signature["inputs"]), name
        assert set(re.findall(r"`(\w+)`(?: `\[|:)", returns)) <= set(signature["outputs"]), name
    assert set(described["score"]["outputs"]) == {"nats", "bits_per_dim", "kl_per_group", "valid"}


def test_a_server_warms_up_with_one_request_for_every_signature(folder, model):
    file = folder / "assets.extra" / "tf_serving_warmup_requests"
    logs = map(prediction_log_pb2.PredictionLog.FromString, tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.signature_name for request in requests] == [*SIGNATURES, "serving_default"]
    for request in requests:
        name = request.model_spec.signature_name
        specs = Signatures(model).input_specs("sample" if name == "serving_default" else name)
        assert request.model_spec.name == "all" and sorted(request.inputs) == sorted(spec.name for spec in specs)
        for spec in specs:
            tensor = tf.make_ndarray(request.inputs[spec.name])
            assert tensor.shape[0] == verification.ROWS and spec.is_compatible_with(tf.constant(tensor))


@pytest.mark.slow
def test_half_precision_weights_are_half_as_long_and_hardly_move_the_pictures(vanilla_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Signatures, "names", ("sample", "reconstruct"))
    exported(vanilla_model, tmp_path, weights="bfloat16")
    half = tmp_path / "1"
    reader = tf.train.load_checkpoint(str(half / "variables" / "variables"))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    start = list(vanilla_model.top_down.start.shape)
    stacks = {name: shape for name, shape in shapes.items() if "VARIABLE_VALUE" in name and shape != start}
    kernels = {dtypes[name] for name, shape in stacks.items() if len(shape) > 2}
    vectors = {dtypes[name] for name, shape in stacks.items() if len(shape) == 2}
    assert kernels == {tf.bfloat16} and vectors == {tf.float32}
    source = json.loads((half / "assets.extra" / "source.json").read_text())
    assert source["weights"] == "bfloat16" and 0.0 < source["difference_from_model"]["sample/image"] < 0.05


@pytest.fixture
def unwritten(monkeypatch):
    """Exports are folders without a graph."""

    def write(self, folder, folded):
        folder.mkdir()
        (folder / "saved_model.pb").write_text("")

    monkeypatch.setattr(Signatures, "write", write)


def test_weights_that_are_rounded_too_much_are_not_published(vanilla_model, tmp_path, monkeypatch, unwritten):
    monkeypatch.setattr(saved_model, "LARGEST_DIFFERENCE", 1e-6)
    monkeypatch.setattr(saved_model, "verified", lambda *arguments: {})
    with pytest.raises(ValueError, match="weights=bfloat16 change too much.*export float32. It was not published"):
        export_saved_model(vanilla_model, tmp_path / "half", weights="bfloat16")
    assert not list(tmp_path.iterdir())


def test_a_model_of_many_channels_has_no_signatures_for_files():
    config = dataclasses.replace(VANILLA_CONFIG, image_channels=5)
    signatures = Signatures(NVAE(config))
    assert "sample" in signatures.names and not any(name.endswith("_png") for name in signatures.names)
    assert set(verification.recorded(signatures)) >= {"outputs/score/nats", "outputs/sample/image_uint8"}
    deep = Signatures(NVAE(dataclasses.replace(VANILLA_CONFIG, num_bits=12, likelihood="logistic_mixture")))
    assert deep.names == signatures.names


@pytest.mark.slow
def test_the_weights_of_an_export_are_read_without_the_run(folder, model, run):
    config, loaded, folded, source = load_export(folder)
    assert config is None and loaded.config == model.config
    assert source["step"] == 1200 and source["most_rows"] >= 64
    refuses("made of a model, not of a run, and names no images", run_images, config, None, "test", 4)
    latents = model.encode(IMAGES, seed=5)
    images = folded_signatures(loaded, folded).decode(tf.constant(flat(latents)))["image"]
    np.testing.assert_allclose(images, run("decode", latent=flat(latents))["image"], atol=1e-5)
    refuses("can't be read by place .*; export the run again", load_export, FIRST_EXPORT)


def test_no_python_no_paths_no_xla_and_no_training_state_in_the_export(folder, model):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert not {"PyFunc", "PyFuncStateless", "EagerPyFunc"} & {node.op for node in nodes}
    attributes = [function.attr for function in graph.library.function] + [node.attr for node in nodes]
    assert not any(attr["_XlaMustCompile"].b for attr in attributes if "_XlaMustCompile" in attr)
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(ROOT).encode() not in content and b".py" not in content, file
    variables = tf.train.list_variables(str(folder / "variables" / "variables"))
    stored = sum(int(np.prod(shape)) for name, shape in variables if "VARIABLE_VALUE" in name)
    folded = [variable for slices in folded_weights(model._stacks()).values() for variable in tf.nest.flatten(slices)]
    values = sum(variable.shape.num_elements() for variable in folded if variable is not None)
    assert stored == values + int(np.prod(model.top_down.start.shape))


def test_an_export_with_other_numbers_is_not_published(vanilla_model, tmp_path, monkeypatch, unwritten):
    def off_by_little(*_, **__):
        outputs = verification.side_of_record(verification.recorded(Signatures(vanilla_model)), "outputs")
        outputs["score/kl_per_group"] *= np.float32(1 + 3e-5)
        return outputs

    monkeypatch.setattr(verification, "run_alone", off_by_little)
    refuses("score/kl_per_group is off by 3.*not published", export_saved_model, vanilla_model, tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_diverged_is_not_exported(vanilla_model):
    model = NVAE(vanilla_model.config)
    model.top_down.image.kernel.assign(model.top_down.image.kernel * np.nan)
    refuses("signature sample gives numbers that are not finite", verification.recorded, Signatures(model))


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied" / "7")


def test_every_file_is_looked_at(copied, refused):
    (copied / "assets.extra" / "latents.json").write_text("{}")
    (copied / "assets.extra" / "tf_serving_warmup_requests").unlink()
    (copied / "variables" / "more").touch()
    names = "assets.extra/latents.json, assets.extra/tf_serving_warmup_requests, variables/more"
    message = f"{names} missing, changed or not in {DIGESTS}; copy the export anew"
    assert message in refused("export.verify", str(copied))
    flags = f"--saved_model={copied}", f"--output={copied / 'x.tflite'}", "--signature=decode"
    assert message in refused("export.export_tflite", *flags)
    assert f"name one version; there is {copied}" in refused("export.verify", str(copied.parent))


def test_what_is_missing_or_no_number_is_never_equal(tmp_path):
    one, nan = {"nats": np.ones(2, np.float32)}, {"nats": np.float32([1, np.nan])}
    for pair in ((one, nan), (nan, one), ({}, one), (one, {})):
        assert verification.all_differences(*pair) == {"nats": np.inf}
    assert verification.all_differences(one, one) == {"nats": 0.0}
    export = shutil.copytree(FIRST_EXPORT, tmp_path / "1")
    record = read_record(export)
    write_arrays(export / RECORD, record | {"outputs/score/nats": record["outputs/score/nats"] * np.nan})
    refuses("verification.npz: .*`outputs/score/nats` has numbers .* not all finite", read_record, export)


@pytest.mark.parametrize("lacking", ["outputs/score/nats", "outputs/s"])
def test_a_record_that_lacks_outputs_proves_nothing(tmp_path, refused, lacking, monkeypatch):
    export = shutil.copytree(FIRST_EXPORT, tmp_path / "1")
    record = read_record(export)
    monkeypatch.setattr(verification, "run_alone", lambda *_, **__: verification.side_of_record(record, "outputs"))
    write_arrays(export / RECORD, {name: array for name, array in record.items() if not name.startswith(lacking)})
    write_digests(export)
    assert re.search("does not give the model's numbers: .* is off by inf", refused("export.verify", str(export)))


@pytest.mark.slow
def test_an_export_without_a_record_and_one_that_cannot_be_run(copied):
    (copied / "variables" / "variables.index").write_bytes(b"")
    refuses(r"can't be run in a clean process \(.*\)$", verified, copied)
    (copied / RECORD).unlink()
    refuses("verification.npz: missing or damaged", verified, copied)


def test_places_and_numbers_that_cannot_be_are_refused_before_any_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for name in ("02", "12", ".13.partial-abc"):  # the last is left by a killed export
        (tmp_path / "models" / name).mkdir(parents=True)
    check_version_is_free(tmp_path / "models", 13)
    for place, version, message in (
        ("models", 2, "has a version 2 already.*next free one is 13"),
        ("folder", 1, "holds 'file', so it has no versions"),
        ("new[1]", 1, r"new\[1\]: TensorFlow takes \[ for a pattern"),
        ("folder/file", 1, "file is a file, not a folder"),
        ("new", 0, "whole numbers from 1 to 9223372036854775807"),
    ):
        refuses(message, check_version_is_free, tmp_path / place, version)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "step-12.data").write_bytes(b"weights")
    (tmp_path / "step-12.index").write_bytes(b"index")
    model = tiny_config(image_height=16, image_width=16, num_latent_scales=1, squeeze_excite=False)
    config = ExperimentConfig(model=model, data=data_spec("digits"))
    model, checkpoint = NVAE(config.model), str(tmp_path / "step-12")
    trained = SimpleNamespace(config=config, checkpoint=checkpoint, step=12, model=model, has_ema=False)
    asked = []
    monkeypatch.setattr(loading, "load_run", lambda *given: asked.append(given) or trained)
    return asked


def test_the_model_of_the_run_becomes_the_version_that_was_asked_for(loaded, tmp_path, monkeypatch, done):
    calls = []
    monkeypatch.setattr(saved_model, "origin_of", lambda run, workdir: saved_model.Origin({"step": run.step}))

    def export(*given):
        calls.append(given)
        return 0.004

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    flags = ["--most_rows=90", "--version=4", "--checkpoint=best", "--weights=float16"]
    printed = done("export.export_saved_model", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path}/models", *flags)
    assert loaded.pop() == (tmp_path / "run", "best")
    ((_, *given),) = calls
    assert given == [f"{tmp_path}/models", 4, "float16", saved_model.Origin({"step": 12}), 90]
    for words in (str(tmp_path / "models" / "4"), ", step 12,", "0.004 of the largest off at most"):
        assert words in printed


def test_a_run_is_exported_into_the_cache_once(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exported, place, prefix = [], str(tmp_path / "run"), str(tmp_path / "step-12")

    def export(model, folder, origin):
        exported.append(origin)
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "saved_model.pb").touch()

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    monkeypatch.setattr(loading, "TrainedRun", lambda folder: SimpleNamespace(checkpoint=prefix))
    scores = {"checkpoint_sha256": checkpoint_sha256(prefix), "nelbo_nats": 1.0}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(scores | {"data": "/home/someone/data"}))
    first = cached_export(place)
    assert first.name == "run" and cached_export(place) == first
    (origin,) = exported
    assert origin.settings["data"]["path"] is None and origin.source["step"] == 12 and origin.scores == scores
    assert origin.examples["images"].shape == (16, 16, 16, 1)
    (tmp_path / "step-12.data").write_bytes(b"other weights")
    second = cached_export(place)
    (tmp_path / "run" / "prior.npz").write_bytes(b"learned since")
    assert len({first, second, cached_export(place)}) == len(exported) == 3


def test_an_export_has_test_images_only_where_they_can_be_read(tmp_path):
    spec = dataclasses.replace(data_spec("omniglot"), path=str(tmp_path / "missing"))
    assert example_images(ExperimentConfig(data=spec)) is None
    spec = dataclasses.replace(data_spec("digits"), labels=True, num_classes=10)
    examples = example_images(ExperimentConfig(data=spec))
    assert examples["labels"].tolist() == [*range(10), *range(6)]
    assert examples["classes"].tolist() == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_the_run_becomes_the_file_that_was_asked_for_and_the_numbers_are_printed(loaded, tmp_path, done):
    output = tmp_path / "models" / "digits.tflite"
    flags = [f"--output={output}", "--signature=reconstruct", "--quantize=int8", "--checkpoint=best"]
    printed = done("export.export_tflite", f"--workdir={tmp_path / 'run'}", *flags)
    assert loaded == [(tmp_path / "run", "best")]
    for word in ("step 12,", " bytes", " ms an image", "error ", " dB", str(output)):
        assert word in printed
    report = json.loads((tmp_path / "models" / "digits.tflite.json").read_text())
    assert report["source"]["step"] == 12
    assert report["quantization"]["mode"] == "int8" and report["signature"] == "reconstruct"
    assert report["measured"]["test_inputs"] == 64 and report["quantization"]["representative_inputs"] == 128
    assert output.stat().st_size == report["measured"]["size_bytes"]
