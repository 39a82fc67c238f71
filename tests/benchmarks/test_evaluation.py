"""The benchmark of evaluation, on its smallest preset."""

import json

import pytest

from benchmarks import evaluation


@pytest.mark.slow
def test_a_real_run(tmp_path, capsys):
    file = tmp_path / "figures.json"
    evaluation.main(["--preset=digits", "--importance_samples=5", "--rounds=1", f"--json={file}"])
    result = json.loads(file.read_text())
    seconds = {name: times[0] for name, times in result["every_seconds_an_image"].items()}
    assert result["ratio"] == pytest.approx(seconds["bound"] / seconds["naive"])
    assert result["images_per_second"]["sampling"] == pytest.approx(1.0 / seconds["sampling"])
    assert f"{result['ratio']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--rounds=0"], ["--importance_samples=0"], ["--json=/no/such/folder/x"]])
def test_wrong_arguments_are_told_before_anything_starts(arguments, capsys):
    with pytest.raises(SystemExit):
        evaluation.parse_arguments(["--preset=digits", *arguments])
    assert arguments[0].partition("=")[0] in capsys.readouterr().err
