"""The script that draws pictures with an export; test_exported_numbers.py looks at what it draws."""

import sys

import pytest

from export import run_saved_model


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--saved_model=missing"], "no saved_model.pb in it"),
        (["--saved_model={folder}", "--temperature=0"], "must be above 0"),
        (["--saved_model={folder}", "--count=0"], "must be above 0"),
        (["--saved_model={folder}", "--seed=-1"], "from 0 to"),
    ],
)
def test_the_plain_script_tells_a_mistake_in_its_arguments(folder, tmp_path, capsys, monkeypatch, flags, message):
    flags = [flag.format(folder=folder) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["run_saved_model.py", f"--output={tmp_path / 'x.png'}", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_saved_model.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_export_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer")
    flags = [f"--saved_model={tmp_path}", f"--output={tmp_path / 'x.png'}"]
    monkeypatch.setattr(sys, "argv", ["run_saved_model.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_saved_model.main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.count("\n") == 1 and "a damaged or foreign export" in told
    assert [file.name for file in tmp_path.iterdir()] == ["saved_model.pb"]
