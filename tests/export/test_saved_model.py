"""What an export consists of, and that it is published only when it is right."""

import json
import pathlib
import stat

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from export import verification
from export.saved_model import export_saved_model
from export.signatures import SIGNATURES, Signatures
from nvae_tf.config import read_config
from nvae_tf.models import NVAE

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_export_is_whole_and_nothing_lies_beside_it(folder):
    assert folder.name == "3" and [entry.name for entry in folder.parent.iterdir()] == ["3"]
    # Readable for a server that runs as another user, as far as the user's umask lets.
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == stat.S_IMODE(folder.parent.stat().st_mode) & 0o077


def test_settings_origin_and_latent_layout_travel_with_the_export(folder, model):
    assert read_config(folder / "assets.extra" / "config.json").model == model.config
    assert json.loads((folder / "assets.extra" / "source.json").read_text()) == {"step": 1200}
    layout = json.loads((folder / "assets.extra" / "latents.json").read_text())
    assert [tuple(shape) for shape in layout["shapes"]] == list(model.plan.latent_shapes())
    assert layout["total"] == sum(int(np.prod(shape)) for shape in model.plan.latent_shapes())


def test_inputs_and_outputs_are_named_typed_and_batch_first(folder):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    found = {name: [sorted(definitions[name].inputs), sorted(definitions[name].outputs)] for name in SIGNATURES}
    assert found == {
        "sample": [["seed", "temperature"], ["image"]],
        "encode": [["image", "seed"], ["latent"]],
        "decode": [["latent"], ["image"]],
        "reconstruct": [["image", "seed"], ["image"]],
        "score": [["image", "seed"], ["bits_per_dim", "kl_per_group", "nats"]],
    }
    for name in SIGNATURES:
        for tensor_name, tensor in [*definitions[name].inputs.items(), *definitions[name].outputs.items()]:
            assert tensor.tensor_shape.dim[0].size == -1
            assert tensor.dtype == (tf.int64 if tensor_name == "seed" else tf.float32).as_datatype_enum


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
    spectral = sum(int(np.prod(vector.shape)) for vector in model.spectral_regularizer.variables)
    assert stored == model.count_params() - spectral - 1  # data_initialised


class SmallArchive:
    """Writes quickly what stands for an export."""

    def write_out(self, folder, options, verbose):
        pathlib.Path(folder).mkdir()
        pathlib.Path(folder, "saved_model.pb").write_text("")


def test_an_export_with_other_numbers_is_not_published(vanilla_model, tmp_path, monkeypatch):
    signatures = Signatures(vanilla_model)

    def off_by_little(folder, inputs):
        assert (folder / "saved_model.pb").is_file()
        outputs = verification.model_numbers(signatures)[1]
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
    with pytest.raises(ValueError, match="can't be run in a clean process:(.|\n)*missing_program.py"):
        export_saved_model(vanilla_model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_diverged_is_not_exported(vanilla_model):
    model = NVAE(vanilla_model.config)
    model.top_down.image.kernel.assign(model.top_down.image.kernel * np.nan)
    with pytest.raises(ValueError, match="image .signature sample. is not finite"):
        verification.model_numbers(Signatures(model))
