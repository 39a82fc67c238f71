import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import data_spec
from nvae_tf.models import NVAE
from nvae_tf.runs import loading
from nvae_tf.runs.checkpoint_files import checkpoint_sha256
from nvae_tf.serving import saved_model
from nvae_tf.serving.explorer_files import cached_export, example_images
from nvae_tf.serving.tflite import run_images
from tests.tiny_model import tiny_config


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "step-12.data").write_bytes(b"weights")
    (tmp_path / "step-12.index").write_bytes(b"index")
    config = ExperimentConfig(model=tiny_config(image_height=16, image_width=16), data=data_spec("digits"))
    model, checkpoint = NVAE(config.model), str(tmp_path / "step-12")
    trained = SimpleNamespace(config=config, checkpoint=checkpoint, step=12, model=model, has_ema=False)
    asked = []
    monkeypatch.setattr(loading, "load_run", lambda *given: asked.append(given) or trained)
    return asked


def test_the_model_of_the_run_becomes_the_version_that_was_asked_for(run, tmp_path, monkeypatch, done):
    calls = []
    monkeypatch.setattr(saved_model, "origin_of", lambda run, workdir: saved_model.Origin({"step": run.step}))

    def export(*given):
        calls.append(given)
        return 0.004

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    flags = ["--most_rows=90", "--version=4", "--checkpoint=best", "--weights=float16"]
    printed = done("export.export_saved_model", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path}/models", *flags)
    assert run.pop() == (tmp_path / "run", "best")
    ((_, *given),) = calls
    assert given == [f"{tmp_path}/models", 4, "float16", saved_model.Origin({"step": 12}), 90]
    for words in (str(tmp_path / "models" / "4"), ", step 12,", "0.004 of the largest off at most"):
        assert words in printed


def test_a_run_is_exported_into_the_cache_once(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exported, place, prefix = [], str(tmp_path / "run"), str(tmp_path / "step-12")

    def export(model, folder, origin):
        exported.append(origin)
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "saved_model.pb").touch()

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    monkeypatch.setattr(loading, "find_run", lambda folder: (None, prefix))
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


def test_images_of_the_run_are_spread_over_the_part():
    config = ExperimentConfig(data=data_spec("digits"))
    images = run_images(config, None, "test", 5)
    assert images.shape == (5, 16, 16, 1) and set(np.unique(images)) == {0.0, 1.0}
    assert len(run_images(config, None, "test", 1000)) == 360


@pytest.mark.slow
def test_the_run_becomes_the_file_that_was_asked_for_and_the_numbers_are_printed(run, tmp_path, done):
    output = tmp_path / "models" / "digits.tflite"
    flags = [f"--output={output}", "--signature=reconstruct", "--quantize=int8", "--checkpoint=best"]
    printed = done("export.export_tflite", f"--workdir={tmp_path / 'run'}", *flags)
    assert run == [(tmp_path / "run", "best")]
    for word in ("step 12,", " bytes", " ms an image", "error ", " dB", str(output)):
        assert word in printed
    report = json.loads((tmp_path / "models" / "digits.tflite.json").read_text())
    assert report["source"]["step"] == 12
    assert report["quantization"]["mode"] == "int8" and report["signature"] == "reconstruct"
    assert report["measured"]["test_inputs"] == 64 and report["quantization"]["representative_inputs"] == 128
    assert output.stat().st_size == report["measured"]["size_bytes"]


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("export_saved_model", ["--workdir={0}/run", "--output={0}/new"], "--workdir={0}/run: no such folder"),
        ("export_saved_model", ["--workdir=none", "--output={0}/models"], "has a version 1 already"),
        ("export_tflite", ["--workdir=none", "--output={0}/a.tflite"], "a.tflite exists already"),
        ("export_tflite", ["--workdir=x", "--output=y", "--smallest_psnr=nan"], "--smallest_psnr=nan: must be"),
        ("export_tflite", ["--output=y"], "give one of --workdir and --saved_model"),
        ("export_tflite", ["--output=y", "--workdir=x", "--signature=sample", "--quantize=int8"], "would be clipped"),
        ("export_tflite", ["--output=y", "--saved_model={0}/models/1"], "no saved_model.pb in it"),
    ],
)
def test_errors_are_reported_before_any_work(tmp_path, refused, name, flags, message):
    (tmp_path / "models" / "1").mkdir(parents=True)
    (tmp_path / "a.tflite").write_text("old")
    signature = ["--signature=decode"] if name == "export_tflite" else []
    assert message.format(tmp_path) in refused(f"export.{name}", *signature, *(flag.format(tmp_path) for flag in flags))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tflite", "models"]
