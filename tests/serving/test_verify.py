"""An export is checked again wherever it is: right, damaged, or none at all."""

import shutil

import pytest

from nvae_tf.serving.outputs import DIGESTS as FILE
from nvae_tf.serving.verification import RECORD, verified


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied" / "7")


@pytest.mark.slow
def test_a_copy_gives_the_same_numbers(copied, script):
    code, printed, _ = script("verify", str(copied))
    assert code == 0
    assert "reconstruct_png/image_bytes" in printed and "gives the model's numbers" in printed


def test_every_file_is_looked_at(copied, refused):
    (copied / "assets.extra" / "latents.json").write_text("{}")
    (copied / "assets.extra" / "tf_serving_warmup_requests").unlink()
    assert "assets.extra/tf_serving_warmup_requests missing; copy the export anew" in refused("verify", str(copied))
    (copied / "assets.extra" / "tf_serving_warmup_requests").touch()
    said = refused("verify", str(copied))
    assert "latents.json, assets.extra/tf_serving_warmup_requests damaged or changed" in said
    assert said.count("\n") == 1
    (copied / FILE).write_text("[")
    assert f"{FILE}: missing or damaged" in refused("verify", str(copied))


def test_what_is_no_export_is_told(folder, tmp_path, refused):
    assert f"name one version; there is {folder}" in refused("verify", str(folder.parent))
    assert "no such folder; name one version" in refused("verify", str(tmp_path / "missing"))
    assert "Did you mean: path" in refused("verify", "--pth=x")


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
