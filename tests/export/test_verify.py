"""An export is checked again wherever it is: right, damaged, or none at all."""

import shutil

import pytest

from export import verify
from export.saved_models.verification import RECORD


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied" / "7")


def refused(capsys, path):
    with pytest.raises(SystemExit) as stopped:
        verify.main([str(path)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_copy_gives_the_same_numbers(copied, capsys):
    verify.main([str(copied)])
    printed = capsys.readouterr().out
    assert "reconstruct_png/image_bytes" in printed and "gives the model's numbers" in printed


def test_no_export_one_with_a_damaged_record_and_one_without_a_record(copied, tmp_path, capsys):
    assert "no export in it (saved_model.pb); name one version ['" in refused(capsys, copied.parent)
    assert "no export" in refused(capsys, tmp_path / "missing")
    (copied / RECORD).write_bytes(b"PK")
    assert "verification.npz" in refused(capsys, copied)
    (copied / RECORD).unlink()
    assert "nothing to compare the export with" in refused(capsys, copied)
