import json
import sys

import pytest

from nvae_tf import errors
from nvae_tf.published.conversion import import_run
from tests import FIXTURES

FIXTURE = FIXTURES / "normal_decoder_tiny.pt"
IMPORT, EXPORT = "export.import_torch_checkpoint", "export.export_torch_checkpoint"


@pytest.mark.slow
@pytest.mark.torch
def test_there_and_back(done, published, tmp_path):
    runs, back = tmp_path / "my runs" / "cifar10", tmp_path / "back.pt"
    given = ("--data_source=arrays", "--data_path=no/images.npy", "--license=mit", f"--report={tmp_path}/map.csv")
    printed = done(IMPORT, f"--checkpoint={FIXTURE}", f"--output={runs}", *given)
    assert "cifar10, step 7." in printed
    assert "at step 7 of train.steps = " in printed
    assert "nothing at --data_path=no/images.npy yet" in printed
    assert f"nvae-evaluate --workdir='{runs}'\n" in printed and (tmp_path / "map.csv").is_file()
    data = json.loads((runs / "config.json").read_text())["data"]
    assert (data["name"], data["source"], data["path"]) == ("cifar10", "arrays", "no/images.npy")
    assert json.loads((runs / "origin.json").read_text())["license"] == "mit"
    printed = done(EXPORT, f"--workdir={runs}", f"--output={back}")
    assert printed == f"Exported step 7 to {back}, as a checkpoint of cifar10.\n"
    content = published.read("mnist_tiny.pt")
    # Steps of 2 GPUs with 4 images each: a pass over the 24,345 images of Omniglot has 3,043 of them.
    content["args"].dataset, content["args"].batch_size = "omniglot", 4
    content |= {"epoch": 1, "global_step": 3043}
    file = published.saved(content, tmp_path / "x.pt")
    printed = done(IMPORT, f"--checkpoint={file}", f"--output={tmp_path / 'run'}")
    assert "It was trained with 8 images a step: 2 GPUs with 4 each." in printed
    assert "chardata.mat" in printed and "--data_path=PATH" in printed and "--config.data.path=PATH" in printed


@pytest.mark.torch
def test_commands_that_are_refused(refused, tmp_path):
    file, new = tmp_path / "x.pt", f"--output={tmp_path / 'new'}"
    file.write_bytes(b"<html>404</html>" * 100)
    checkpoint = f"--checkpoint={file}"
    assert "x.pt: not a checkpoint that PyTorch" in refused(IMPORT, checkpoint, new)
    assert "--license='a\\nb': must be one line" in refused(IMPORT, checkpoint, new, "--license=a\nb")
    assert "--data_source = 'idxx': not one of the choices" in refused(IMPORT, checkpoint, new, "--data_source=idxx")
    assert "exists already" in refused(EXPORT, f"--workdir={tmp_path}", f"--output={file}")
    assert "not a run folder" in refused(EXPORT, f"--workdir={tmp_path}", f"--output={tmp_path / 'y.pt'}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_missing_torch_is_reported_before_tensorflow_starts(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(errors, "start_tensorflow_quietly", lambda: pytest.fail("TensorFlow starts"))
    assert "torch is not installed" in refused(IMPORT, f"--checkpoint={FIXTURE}", f"--output={tmp_path / 'x' / 'new'}")
    (tmp_path / "config.json").touch()
    assert "torch is not installed" in refused(EXPORT, f"--workdir={tmp_path}", f"--output={tmp_path / 'x' / 'y.pt'}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.torch
def test_a_full_disk_is_reported_by_the_name_that_was_given(small_files, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    small_files(20_000)
    with pytest.raises(OSError, match=r"--output=\S+/run: could not be written .*\. Make room") as caught:
        import_run(FIXTURE, tmp_path / "run")
    assert "partial" not in str(caught.value) and not list((tmp_path / "disk").iterdir())
    small_files(None)
    import_run(FIXTURE, tmp_path / "run")
    assert (tmp_path / "run").is_symlink() and (tmp_path / "disk" / "config.json").is_file()
