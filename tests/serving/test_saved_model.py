"""What an export consists of, and that it is published only when it is right."""

import dataclasses
import json
import pathlib
import re
import stat

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from nvae_tf.config import read_config
from nvae_tf.layers import folded_weights
from nvae_tf.models import NVAE
from nvae_tf.serving import saved_model, verification
from nvae_tf.serving.saved_model import export_saved_model
from nvae_tf.serving.signatures import SIGNATURES, Signatures
from tests.serving.conftest import VANILLA_CONFIG

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_export_is_whole_and_nothing_lies_beside_it(folder):
    assert folder.name == "3" and [entry.name for entry in folder.parent.iterdir()] == ["3"]
    # Readable for a server that runs as another user, as far as the user's umask lets.
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == stat.S_IMODE(folder.parent.stat().st_mode) & 0o077


def test_settings_origin_and_latent_layout_travel_with_the_export(folder, model):
    assert read_config(folder / "assets.extra" / "config.json").model == model.config
    source = json.loads((folder / "assets.extra" / "source.json").read_text())
    assert source["step"] == 1200 and source["weights"] == "float32" and source["tensorflow"] == tf.__version__
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}(-dirty)?", source["git_revision"])
    assert max(source["difference_from_model"].values()) < 1e-5
    scores = json.loads((folder / "assets.extra" / "evaluation.json").read_text())
    assert scores == {"nelbo_nats": 3.5}
    layout = json.loads((folder / "assets.extra" / "latents.json").read_text())
    assert [tuple(shape) for shape in layout["shapes"]] == list(model.plan.latent_shapes())
    assert layout["total"] == sum(int(np.prod(shape)) for shape in model.plan.latent_shapes())


def test_inputs_and_outputs_are_named_typed_batch_first_and_described(folder, model):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    found = {name: [sorted(definitions[name].inputs), sorted(definitions[name].outputs)] for name in SIGNATURES}
    assert found == {
        "sample": [["seed", "temperature"], ["image", "image_uint8"]],
        "encode": [["image", "seed"], ["latent"]],
        "decode": [["latent"], ["image", "image_uint8"]],
        "decode_upper_groups": [["latent", "num_groups", "seed", "temperature"], ["image", "image_uint8"]],
        "reconstruct": [["image", "seed"], ["image", "image_uint8"]],
        "score": [["image", "seed"], ["bits_per_dim", "kl_per_group", "nats"]],
        "sample_png": [["seed", "temperature"], ["image_bytes"]],
        "encode_png": [["image_bytes", "seed"], ["latent"]],
        "decode_png": [["latent"], ["image_bytes"]],
        "decode_upper_groups_png": [["latent", "num_groups", "seed", "temperature"], ["image_bytes"]],
        "reconstruct_png": [["image_bytes", "seed"], ["image_bytes"]],
        "score_png": [["image_bytes", "seed"], ["bits_per_dim", "kl_per_group", "nats"]],
    }
    others = {"seed": tf.int64, "num_groups": tf.int32, "image_uint8": tf.uint8, "image_bytes": tf.string}
    described = json.loads((folder / "assets.extra" / "signatures.json").read_text())
    for name in SIGNATURES:
        assert list(described[name]["inputs"]) == [spec.name for spec in Signatures(model).input_specs(name)]
        tensors = {**definitions[name].inputs, **definitions[name].outputs}
        for tensor_name, tensor in tensors.items():
            assert tensor.tensor_shape.dim[0].size == -1
            assert tensor.dtype == others.get(tensor_name, tf.float32).as_datatype_enum
            description = (described[name]["inputs"] | described[name]["outputs"])[tensor_name]
            assert tf.as_dtype(description["dtype"]).as_datatype_enum == tensor.dtype
            assert description["shape"][1:] == [size.size for size in tensor.tensor_shape.dim][1:]


def test_a_server_warms_up_with_one_request_for_every_signature(folder, model):
    file = folder / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(file))
    ]
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.signature_name for request in requests] == list(SIGNATURES)
    for request in requests:
        specs = Signatures(model).input_specs(request.model_spec.signature_name)
        assert request.model_spec.name == "all" and sorted(request.inputs) == sorted(spec.name for spec in specs)
        for spec in specs:
            tensor = tf.make_ndarray(request.inputs[spec.name])
            assert tensor.shape[0] == 1 and spec.is_compatible_with(tf.constant(tensor))


@pytest.mark.slow
def test_half_precision_weights_are_half_as_long_and_hardly_move_the_pictures(vanilla_model, tmp_path):
    half = export_saved_model(vanilla_model, tmp_path / "half", weights="bfloat16").folder
    reader = tf.train.load_checkpoint(str(half / "variables" / "variables"))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    kernels = {dtypes[name] for name, shape in shapes.items() if "VARIABLE_VALUE" in name and len(shape) in (2, 4)}
    vectors = {dtypes[name] for name, shape in shapes.items() if "VARIABLE_VALUE" in name and len(shape) == 1}
    assert kernels == {tf.bfloat16} and vectors == {tf.float32}
    source = json.loads((half / "assets.extra" / "source.json").read_text())
    assert source["weights"] == "bfloat16" and 0.0 < source["difference_from_model"]["sample/image"] < 0.05


def test_weights_that_are_rounded_too_much_are_not_published(vanilla_model, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "LARGEST_DIFFERENCE", 1e-6)
    with pytest.raises(ValueError, match="weights=bfloat16 change too much.*export float32. It was not published"):
        export_saved_model(vanilla_model, tmp_path / "half", weights="bfloat16")
    assert not list(tmp_path.iterdir())


def test_a_model_of_many_channels_has_no_signatures_for_files():
    config = dataclasses.replace(VANILLA_CONFIG, image_channels=5)
    signatures = Signatures(NVAE(config))
    assert "sample" in signatures.names and not any(name.endswith("_png") for name in signatures.names)
    assert set(verification.recorded(signatures).outputs) >= {"score/nats", "sample/image_uint8"}


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
    folded = [variable for slices in folded_weights(model.stacks).values() for variable in tf.nest.flatten(slices)]
    values = sum(variable.shape.num_elements() for variable in folded if variable is not None)
    assert stored == values + int(np.prod(model.top_down.start.shape))


class SmallArchive:
    """Writes quickly what stands for an export."""

    def write_out(self, folder, options, verbose):
        pathlib.Path(folder).mkdir()
        pathlib.Path(folder, "saved_model.pb").write_text("")


def test_an_export_with_other_numbers_is_not_published(vanilla_model, tmp_path, monkeypatch):
    signatures = Signatures(vanilla_model)

    def off_by_little(folder, inputs):
        assert (folder / "saved_model.pb").is_file()
        outputs = verification.recorded(signatures).outputs
        outputs["score/kl_per_group"] *= np.float32(1 + 3e-5)
        return outputs

    monkeypatch.setattr(Signatures, "archive", lambda self: SmallArchive())
    monkeypatch.setattr(verification, "clean_process_numbers", off_by_little)
    with pytest.raises(ValueError, match="score/kl_per_group is off by 3.*not published"):
        export_saved_model(vanilla_model, tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_be_run_is_not_published(vanilla_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Signatures, "archive", lambda self: SmallArchive())
    monkeypatch.setattr(verification, "_REPLAY", pathlib.Path("missing_program.py"))
    with pytest.raises(ValueError, match=r"can't be run in a clean process \(.*missing_program.py"):
        export_saved_model(vanilla_model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_diverged_is_not_exported(vanilla_model):
    model = NVAE(vanilla_model.config)
    model.top_down.image.kernel.assign(model.top_down.image.kernel * np.nan)
    with pytest.raises(ValueError, match="image .signature sample. is not finite"):
        verification.recorded(Signatures(model))
