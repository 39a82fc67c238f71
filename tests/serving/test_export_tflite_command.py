"""The command: from a run folder to a .tflite file, and what it says to mistakes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from nvae_tf.config import ExperimentConfig
from nvae_tf.data import data_spec
from nvae_tf.models import NVAE
from nvae_tf.serving.tflite import Comparison
from nvae_tf.training import loading
from nvae_tf.training.checkpoint_files import checkpoint_sha256
from tests.tiny_model import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEASURED = Comparison(
    size_bytes=1234,
    latency_ms=0.5,
    test_inputs=64,
    largest_error=0.1,
    relative_largest_error=0.1,
    mean_error=0.01,
    relative_error=0.01,
    psnr_db=40.1,
    worst_psnr_db=35.2,
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on the digits, whose weights are as they were initialized."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "step-12.data").write_bytes(b"weights")
    (tmp_path / "step-12.index").write_bytes(b"index")
    config = ExperimentConfig(model=tiny_config(image_height=16, image_width=16), data=data_spec("digits"))
    trained = loading.TrainedRun(config, str(tmp_path / "step-12"), NVAE(config.model), False)
    asked = []
    monkeypatch.setattr(loading, "load_run", lambda *given: asked.append(given) or trained)
    return asked


def test_the_flags_reach_the_export(run, tmp_path, monkeypatch, script):
    from nvae_tf.serving import tflite

    calls = []
    monkeypatch.setattr(
        tflite, "export_tflite", lambda *given, **others: calls.append((*given, *others.values())) or MEASURED
    )
    output = tmp_path / "models" / "digits.tflite"
    flags = [f"--output={output}", "--signature=sample", "--quantize=dynamic", "--smallest_psnr=41.5"]
    _, printed, _ = script("export_tflite", f"--workdir={tmp_path / 'run'}", *flags)
    assert run == [(tmp_path / "run", "latest")]
    ((model, *place, pictures, source, smallest_psnr),) = calls
    assert model.config.image_height == 16 and place == [output, "sample", "dynamic"] and smallest_psnr == 41.5
    assert source["step"] == 12
    assert source["checkpoint_sha256"] == checkpoint_sha256(str(tmp_path / "step-12"))
    images = pictures("test", 5)
    assert images.shape == (5, 16, 16, 1) and set(np.unique(images)) == {0.0, 1.0}
    assert pictures("test", 1000).shape[0] == 360
    for word in ("sample of ", "step 12,", "1,234 bytes", "0.50 ms an image", "PSNR 40.1 dB", f"{output}.json"):
        assert word in printed


@pytest.mark.slow
def test_the_run_becomes_the_file_that_was_asked_for_and_the_numbers_are_told(run, tmp_path, script):
    output = tmp_path / "models" / "digits.tflite"
    flags = [f"--output={output}", "--signature=reconstruct", "--quantize=int8", "--checkpoint=best"]
    _, printed, _ = script("export_tflite", f"--workdir={tmp_path / 'run'}", *flags)
    assert run == [(tmp_path / "run", "best")]
    for word in ("step 12,", " bytes", " ms an image", "error ", " dB", str(output)):
        assert word in printed
    report = json.loads((tmp_path / "models" / "digits.tflite.json").read_text())
    assert report["source"]["step"] == 12
    assert report["quantization"]["mode"] == "int8" and report["signature"] == "reconstruct"
    assert report["measured"]["test_inputs"] == 64 and report["quantization"]["representative_inputs"] == 128
    assert output.stat().st_size == report["measured"]["size_bytes"]


def test_a_missing_run_folder_is_told_and_nothing_written(tmp_path, refused):
    said = refused(
        "export_tflite", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'a' / 'b'}", "--signature=decode"
    )
    assert said.startswith("error: ") and "no such folder" in said and str(tmp_path / "run") in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["a.tflite", "a.tflite.json"])
def test_an_existing_file_is_told_before_the_run_is_looked_at(tmp_path, refused, existing):
    (tmp_path / existing).write_text("old")
    said = refused("export_tflite", "--workdir=missing", f"--output={tmp_path / 'a.tflite'}", "--signature=decode")
    assert f"{existing}: exists already and is not overwritten" in said
    assert (tmp_path / existing).read_text() == "old"


def test_a_file_where_a_folder_must_be_is_told(tmp_path, refused):
    (tmp_path / "models").write_text("")
    said = refused("export_tflite", "--workdir=missing", f"--output={tmp_path / 'models' / 'a'}", "--signature=decode")
    assert "models: a file, so" in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output=y", "--signature=decode"], "--workdir"),
        (["--workdir=x", "--signature=decode"], "--output"),
        (["--workdir=x", "--output=y"], "--signature"),
        (["--workdir=x", "--output=y", "--signature=score"], "--signature=score: value should be one of"),
        (
            ["--workdir=x", "--output=y", "--signature=decode", "--quantize=int4"],
            "--quantize=int4: value should be one of",
        ),
        (["--workdir=x", "--output=y", "--signature=decode", "--smallest_psnr=-1"], "--smallest_psnr=-1.0: must be"),
        (["--workdir=x", "--output=y", "--signature=decode", "--smallest_psnr=nan"], "--smallest_psnr=nan: must be"),
        (["--wrkdir=x"], "'wrkdir'. Did you mean: workdir"),
    ],
)
def test_a_missing_or_senseless_flag_is_told(refused, arguments, message):
    assert message in refused("export_tflite", *arguments)


def test_help_is_a_manual_page_and_does_not_wait_for_tensorflow():
    program = (
        "import atexit, runpy, sys; sys.argv.append('--help')\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "runpy.run_module('export.export_tflite', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n")
    for word in (
        "--workdir",
        "--output",
        "--signature",
        "--quantize",
        "--smallest_psnr",
        "--data_path",
        "reconstruct",
        "float16",
        "Exit code",
    ):
        assert word in process.stdout
