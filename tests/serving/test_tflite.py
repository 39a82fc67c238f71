import dataclasses
import functools
import json
import pathlib
import runpy
import sys

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from nvae_tf.generation.latents_file import save_latents
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.serving import tflite
from nvae_tf.serving.outputs import MODES
from nvae_tf.serving.tflite import DeviceSignatures, compare, convert, device_inputs, folded_signatures, read_metadata
from tests import ROOT, refuses, tiny_model
from tests.command_fixtures import output_of
from tests.serving.conftest import CONFIG, VANILLA_CONFIG, model_of
from tests.tiny_model import flat

EXAMPLE = ROOT / "export" / "decode_on_device.py"
COUNT, SEED = 2, 5


def images_of(model, count=COUNT):
    return tiny_model.images_of(model.config, count)


@pytest.fixture(scope="module")
def model():
    """Has stacks of several layers, whose weights the converter may not confuse."""
    # With the seed 1 hidden layers of gates are 0 for nearly all inputs, which int8 takes badly.
    return model_of(dataclasses.replace(CONFIG, num_cells_per_group_decoder=2), seed=2)


@pytest.fixture(scope="module")
def saved(model, vanilla_model, tmp_path_factory):
    """The folder of a signature's SavedModel: of the model with flows and colors, or of the binary one of a group."""

    def folder_of(kind, name):
        folder = str(tmp_path_factory.mktemp("saved"))
        folded_signatures({"flows": model, "vanilla": vanilla_model}[kind]).write(name, folder)
        return folder

    return functools.cache(folder_of)


@pytest.fixture(scope="module")
def float32(saved):
    return functools.cache(lambda kind, name: convert(saved(kind, name), name, "none", {}))


def runner_of(content, name):
    interpreter = Interpreter(model_content=content)
    assert list(interpreter.get_signature_list()) == [name]
    return interpreter.get_signature_runner(name)


NAMES = ("decode", "encode", "sample", "reconstruct", "compose")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [*(("flows", name) for name in NAMES), ("vanilla", "encode")])
def test_a_device_computes_what_the_models_own_methods_give(request, float32, kind, name):
    model = request.getfixturevalue({"flows": "model", "vanilla": "vanilla_model"}[kind])
    images, latents = images_of(model), model.encode(images_of(model), seed=SEED)
    noise = flat(noise_per_image(model.plan.latent_shapes(), image_seeds(SEED, COUNT)))
    heat, groups = np.full(COUNT, 0.7, np.float32), np.arange(len(latents))
    composed = {"latent": flat(latents), "noise": noise, "keep": np.int32([groups < 1] * COUNT)}
    composed["temperature"] = np.full([COUNT, len(groups)], 0.7, np.float32)
    inputs, output, expected = {
        "decode": ({"latent": flat(latents)}, "image", lambda: model.decode(latents)),
        "encode": ({"image": images, "noise": noise}, "latent", lambda: flat(latents)),
        "sample": ({"noise": noise, "temperature": heat}, "image", lambda: model.generate(COUNT, 0.7, seed=SEED)),
        "reconstruct": ({"image": images, "noise": noise}, "image", lambda: model.decode(latents)),
        "compose": (composed, "image", lambda: model.decode(latents[:1], temperature=0.7, seed=SEED)),
    }[name]
    run, expected = runner_of(float32(kind, name), name), np.asarray(expected())
    assert set(run.get_input_details()) == set(inputs)
    assert set(run.get_output_details()) == {output} | ({"latent"} if name == "compose" else set())
    for index, row in enumerate(expected):
        found = run(**{key: array[index : index + 1] for key, array in inputs.items()})[output]
        assert found.shape == (1, *row.shape) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], row, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_every_mode_has_builtins_alone_smaller_weights_and_similar_images(model, saved, float32, name="reconstruct"):
    signatures, folder = DeviceSignatures(model), saved("flows", name)
    inputs = device_inputs(signatures, name, 4, images_of(model, 4), seed=1)
    sizes, psnr = {}, {}
    for mode in MODES:
        content = float32("flows", name) if mode == "none" else convert(folder, name, mode, inputs)
        # Nearest doubling is one operation of the device, not a broadcast of rank 6 that it may not know.
        details = Interpreter(model_content=content)._get_ops_details()
        assert "RESIZE_NEAREST_NEIGHBOR" in {detail["op_name"] for detail in details}
        compared = compare(content, signatures, name, inputs)
        sizes[mode], psnr[mode] = compared["size_bytes"], compared["psnr_db"]
        details = runner_of(content, name).get_input_details()
        assert {detail["dtype"] for detail in details.values()} == {np.float32}
    tensors = Interpreter(model_content=content).get_tensor_details()
    assert mode == "int8" and sum(tensor["dtype"] == np.int8 for tensor in tensors) > len(tensors) / 2
    assert max(sizes[mode] for mode in MODES if mode != "none") < 0.9 * sizes["none"]
    # Through this number of layers of random weights int8 reaches 47 dB: for its quality see below.
    assert psnr["none"] > 120 > min(psnr["float16"], psnr["dynamic"]) > psnr["int8"] > 40


def test_8_bits_are_enough_for_a_shallow_model(vanilla_model, saved):
    signatures = DeviceSignatures(vanilla_model)
    inputs = device_inputs(signatures, "decode", 4, images_of(vanilla_model, 4), seed=1)
    content = convert(saved("vanilla", "decode"), "decode", "int8", inputs)
    assert compare(content, signatures, "decode", inputs)["worst_psnr_db"] > 50


def test_an_activation_without_range_is_reported_in_one_error(tmp_path):
    """The hidden layer of a squeeze-excite gate that is 0 for all inputs: XNNPACK frees its weights twice."""
    model = model_of(VANILLA_CONFIG)
    for weight in model.weights:
        if weight.path.endswith("/reduce_bias"):
            weight.assign(tf.fill(weight.shape, -10.0))
    output = tmp_path / "a" / "decode.tflite"
    with pytest.raises(ValueError, match="can't run the converted model .*activation is 0 for all.*--quantize=dynamic"):
        tflite.export_tflite(model, output, "decode", "int8", lambda split, count: images_of(model, 3))
    assert not list(tmp_path.iterdir())


def test_an_operation_that_is_no_builtin_is_refused_and_named(vanilla_model, tmp_path):
    class Drawing(DeviceSignatures):
        def decode(self, latent):
            return {"image": latent + tf.random.stateless_normal([1, self.total], [1, 2])}

    Drawing(vanilla_model).write("decode", str(tmp_path))
    with pytest.raises(ValueError, match="--signature=decode --quantize=none: TFLite can't convert it: .*Stateless"):
        convert(str(tmp_path), "decode", "none", {})


@pytest.fixture(scope="module")
def exported(vanilla_model, tmp_path_factory):
    """The place of a small int8 decoder, and the parts of the data that it has asked for."""
    asked = []

    def pictures(split, count):
        asked.append((split, count))
        return images_of(vanilla_model, 3)

    output = tmp_path_factory.mktemp("models") / "all" / "decode.tflite"
    tflite.export_tflite(vanilla_model, output, "decode", "int8", pictures, {"step": 1200})
    return output, asked


def test_the_file_says_what_it_is_and_the_report_what_was_measured(exported, vanilla_model):
    output, asked = exported
    assert asked == [("test", tflite.TEST_INPUTS), ("train", tflite.REPRESENTATIVE_INPUTS)]
    assert sorted(file.name for file in output.parent.iterdir()) == ["decode.tflite", "decode.tflite.json"]
    metadata = read_metadata(output)
    assert (metadata["signature"], metadata["source"]) == ("decode", {"step": 1200})
    assert metadata["quantization"].items() >= {"mode": "int8", "representative_inputs": 3}.items()
    assert metadata["config"]["model"]["likelihood"] == "bernoulli"
    assert list(map(tuple, metadata["latents"]["shapes"])) == list(vanilla_model.plan.latent_shapes())
    report = json.loads(output.with_name("decode.tflite.json").read_text())
    measured = report.pop("measured")
    assert measured.items() >= {"size_bytes": output.stat().st_size, "test_inputs": 3}.items()
    assert measured["psnr_db"] >= measured["worst_psnr_db"] > 40
    assert report.pop("smallest_psnr_db") == 30 and report == metadata


def test_the_comparison_counts_as_the_definitions_do(exported, vanilla_model):
    content = exported[0].read_bytes()
    latent = np.random.default_rng(3).normal(size=(5, DeviceSignatures(vanilla_model).total)).astype(np.float32)
    run = runner_of(content, "decode")
    found = np.concatenate([run(latent=row[np.newaxis])["image"] for row in latent])
    expected = vanilla_model.decode([latent.reshape(-1, *vanilla_model.plan.latent_shapes()[0])]).numpy()
    squares = (found - expected) ** 2
    compared = compare(content, DeviceSignatures(vanilla_model), "decode", {"latent": latent})
    assert compared["largest_error"] == pytest.approx(np.sqrt(squares.max()), rel=1e-3)
    assert compared["psnr_db"] == pytest.approx(-10 * np.log10(squares.mean()), abs=0.01)
    assert compared["worst_psnr_db"] == pytest.approx(-10 * np.log10(squares.mean(axis=(1, 2, 3)).max()), abs=0.01)


@pytest.mark.slow
def test_a_file_with_other_numbers_is_refused_and_not_written(vanilla_model, tmp_path, monkeypatch):
    for quantize, message in (
        ("int8", r"worst image has a PSNR of \d+\.\d dB, at least 140 are wanted; take --quantize=dynamic"),
        ("none", "does not give the model's numbers: the largest error is .*1e-09 is allowed"),
    ):
        monkeypatch.setattr(tflite, "TOLERANCE", 1e-9)
        images, output = (lambda split, count: images_of(vanilla_model, 3)), tmp_path / "a" / "decode.tflite"
        refuses(message, tflite.export_tflite, vanilla_model, output, "decode", quantize, images, smallest_psnr=140)
        assert not list(tmp_path.iterdir())


def test_labels_choose_the_class_on_a_device():
    model = model_of(dataclasses.replace(CONFIG, num_classes=3))
    signatures = folded_signatures(model)
    inputs = device_inputs(signatures, "decode", 6, None, seed=0)
    assert set(inputs["label"]) <= {-1, 0, 1, 2} and len(set(inputs["label"])) > 1
    noise = np.zeros([2, signatures.total], np.float32)
    latents = model.encode(images_of(model), labels=[2, -1], mean=True)
    found = signatures.encode(images_of(model), noise, np.int32([2, -1]))["latent"]
    np.testing.assert_allclose(found, flat(latents), atol=1e-5)


def test_metadata_are_read_of_exports_alone_and_leave_the_model_as_it_is(float32, tmp_path):
    content = float32("vanilla", "sample")
    for damaged, reason in ((b"no flatbuffer at all", "no such"), (content[:200], ""), (content, "no metadata called")):
        (tmp_path / "other").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"other: not a .tflite file of nvae-export-tflite, or damaged .{reason}"):
            read_metadata(tmp_path / "other")
    (tmp_path / "whole").write_bytes(tflite.with_metadata(content, {"a": "ä"}))
    assert read_metadata(tmp_path / "whole") == {"a": "ä"}
    inputs = {"noise": np.ones([1, 32], np.float32), "temperature": np.ones(1, np.float32)}
    results = [runner_of(c, "sample")(**inputs)["image"] for c in (content, (tmp_path / "whole").read_bytes())]
    np.testing.assert_array_equal(*results)


@pytest.mark.slow
def test_the_example_draws_without_tensorflow(float32, vanilla_model, tmp_path):
    model, latents, picture = (str(tmp_path / name) for name in ("model.tflite", "latents.npz", "picture.png"))
    pathlib.Path(model).write_bytes(float32("vanilla", "decode"))
    groups = vanilla_model.encode(images_of(vanilla_model), seed=SEED)
    save_latents(latents, groups)
    draw(model, picture, latents)
    expected = 255 * np.concatenate(list(vanilla_model.decode(groups).numpy()[..., 0]), axis=1)
    np.testing.assert_allclose(np.asarray(Image.open(picture)), expected, atol=0.51)
    pathlib.Path(model).write_bytes(float32("vanilla", "sample"))
    draw(model, picture)
    assert Image.open(picture).size == (8 * 6, 6)


def test_the_example_reports_mistakes_in_one_line(float32, tmp_path, monkeypatch, capsys):
    for signature in ("decode", "sample"):
        (tmp_path / f"{signature}.tflite").write_bytes(float32("vanilla", signature))
    np.savez(tmp_path / "other.npz", images=np.ones(3))
    np.savez_compressed(tmp_path / "bomb.npz", latent=np.zeros(2**25 + 2**20))
    for model, latents, message in (
        ("other.npz", [], "not a valid Flatbuffer"),
        ("decode.tflite", ["none.npz"], "none.npz: "),
        ("decode.tflite", ["bomb.npz"], "bomb.npz: its arrays would take 276,824,"),
        ("decode.tflite", ["other.npz"], "other.npz: 'latent is not a file"),
        ("decode.tflite", [], "decode.tflite: no signature sample; decode takes a file of latents"),
    ):
        monkeypatch.setattr(sys, "argv", ["", *(str(tmp_path / name) for name in (model, "x.png", *latents))])
        refuses("2", runpy.run_path, str(EXAMPLE), run_name="__main__", error=SystemExit)
        (*_, line) = capsys.readouterr().err.splitlines()
        assert "error: " in line and message in line
    assert not (tmp_path / "x.png").exists()


def draw(*arguments):
    """Runs the example where neither TensorFlow nor this package can be imported."""
    program = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'nvae_tf', 'export']))\n"
        f"sys.argv[1:] = {list(arguments)}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    output_of(["-I", "-c", program])
