import importlib
import json

import pytest
from PIL import Image

from benchmarks import all as all_benchmarks
from benchmarks import growth, train_scaling
from benchmarks.workloads import WORKLOADS
from tests.command_fixtures import output_of


def test_mistakes_are_reported_before_anything_starts(capsys, monkeypatch):
    for module, arguments, message in (
        ("all", "--only=training,smapling", "'smapling': must be some of training, "),
        ("all", "--rounds=0", "at least 1"),
        ("all", "--against=/tmp", "--against=/tmp: no checkout of this project"),
        ("train_step", "--preset=mnits", "invalid choice: 'mnits'"),
        ("examples.fashion", "prior", "needs --workdir"),
        ("examples.fashion", "models --workdir=x", "models: needs a kind"),
        ("examples.fashion", "restoration --workdir=x --tasks=x2,holes", "'holes': must be some of x2, hole, "),
        ("examples.digits", "quality", "needs --workdir"),
        ("serving_load", "--path=x --seconds=nan", "nan: must be a number"),
        ("train_scaling", "--replicas=1,0", "--replicas"),
        ("train_scaling", "--recompute=none,some", "'some': must be some of none, "),
        ("train_scaling", "--batch_size=6 --accumulate_steps=1,4", "must divide train.batch_size = 6"),
        ("train_scaling", "--xla=jit", "add --replicas=1"),
    ):
        monkeypatch.setattr("benchmarks.results.has_torch", lambda: True)
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module if "." in module else f"benchmarks.{module}").main(arguments.split())
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_yardstick_needs_torch_and_workloads_have_presets_of_their_own(capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.results.has_torch", lambda: False)
    with pytest.raises(SystemExit) as ended:
        all_benchmarks.parse_arguments([])
    assert ended.value.code == 2 and "the yardstick needs PyTorch" in capsys.readouterr().err
    jobs = all_benchmarks.parse_arguments(["--no-yardstick"]).jobs
    assert [job.preset for job in jobs if job.workload == "training"] == ["mnist", "cifar10", "celeba64"]
    digits = all_benchmarks.parse_arguments(["--against=.", "--presets=digits"]).jobs
    assert [job.workload for job in digits] == list(WORKLOADS) and {job.preset for job in digits} == {"digits"}


def test_help_lists_the_workloads_without_tensorflow():
    show = "import sys\nfrom benchmarks import all\ntry: all.main(['--help'])\nfinally: print(list(sys.modules))"
    printed = output_of(["-c", show])
    assert all(name in printed for name in WORKLOADS)
    assert "'argparse'" in printed and "'tensorflow'" not in printed and "'torch'" not in printed


@pytest.mark.slow
def test_a_real_run_of_all(tmp_path, capsys):
    # Without the yardstick, which takes minutes beside other processes.
    file = tmp_path / "now.json"
    quick = ["--presets=digits", "--rounds=1", "--no-yardstick", "--only=saved_model_sampling,export"]
    all_benchmarks.main([*quick, f"--json={file}"])
    result = json.loads(file.read_text())
    assert result["complete"] and len(result["results"]) == 2
    for row in result["results"]:
        assert row["failure"] is None and len(row["seconds"]) == 1
        assert row["peak_memory_bytes"][0] > 3e8
    assert 0.0 < result["results"][0]["seconds"][0] < result["results"][0]["first_step_seconds"][0]
    assert "| sampling, the exported SavedModel | digits | 16 |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_run_of_train_scaling(tmp_path, capsys):
    file = tmp_path / "now.json"
    quick = ["--batch_size=4", "--recompute=none", "--rounds=2", "--seconds=0.1", f"--json={file}"]
    train_scaling.main(["--preset=digits", "--replicas=1", *quick, "--accumulate_steps=1"])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["images_a_step"] == 4 and row["failure"] is None and row["skipped_steps"] == 0.0
    assert len(row["every_step_seconds"]) == 2 and 0.0 < row["step_seconds"] < row["first_step_seconds"]
    assert row["peak_memory_bytes"] > 3e8 and row["graph_nodes"] > 1000
    assert capsys.readouterr().out.count("\n| ") == 3


@pytest.mark.slow
def test_a_real_run_of_growth(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SIZES", {"side": ("side of an image, pixels", (8, 16))})
    for name, size in (("side", 8), ("model.num_groups_per_scale", 1)):
        monkeypatch.setitem(growth.SMALLEST, name, size)
    figure, file = tmp_path / "growth.png", tmp_path / "now.json"
    growth.main([f"--figure={figure}", f"--json={file}"])
    rows = json.loads(file.read_text())["growth"]
    assert [(row["size"], row["work"]) for row in rows] == [(8, 1.0), (16, 4.0)]
    for row in rows:
        assert row["step"] > 0.0 and 0.0 < row["step_seconds"] < row["first_step"] and row["memory"] > 0.3
    assert Image.open(figure).size == (990, 825)
