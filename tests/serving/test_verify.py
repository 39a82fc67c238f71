"""An export is checked again wherever it is: right, damaged, or none at all."""

import shutil

import pytest

from export import verify
from nvae_tf.serving.saved_models.file_digests import FILE
from nvae_tf.serving.saved_models.verification import RECORD, verified


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


def test_every_file_is_looked_at(copied, capsys):
    (copied / "assets.extra" / "latents.json").write_text("{}")
    (copied / "assets.extra" / "tf_serving_warmup_requests").unlink()
    assert "assets.extra/tf_serving_warmup_requests missing; copy the export anew" in refused(capsys, copied)
    (copied / "assets.extra" / "tf_serving_warmup_requests").touch()
    said = refused(capsys, copied)
    assert "latents.json, assets.extra/tf_serving_warmup_requests damaged or changed" in said
    assert said.count("\n") == 1
    (copied / FILE).write_text("[")
    assert f"{FILE}: missing or damaged" in refused(capsys, copied)


def test_what_is_no_export_is_told(folder, tmp_path, capsys):
    assert f"name one version; there is {folder}" in refused(capsys, folder.parent)
    assert "no such folder; name one version" in refused(capsys, tmp_path / "missing")
    assert "no such flag" in refused(capsys, "--pth=x")


def test_an_export_without_a_record_and_one_that_cannot_be_run(copied):
    (copied / "variables" / "variables.index").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can't be run in a clean process \(.*\)$"):
        verified(copied)
    (copied / RECORD).write_bytes(b"PK")
    with pytest.raises(ValueError, match="verification.npz: damaged"):
        verified(copied)
    (copied / RECORD).unlink()
    with pytest.raises(FileNotFoundError, match="nothing to compare the export with"):
        verified(copied)
