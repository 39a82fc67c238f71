"""Exports to the published form that can't be done are told in one line; source and license of weights go along."""

import argparse
import dataclasses
import json
import pathlib
import resource
import shutil

import pytest
import tensorflow as tf

from export import export_torch_checkpoint
from nvae_tf.published import export_file as exporting
from nvae_tf.published.export_file import ExportChoices, export_file
from nvae_tf.published.import_run import ImportChoices, import_run
from nvae_tf.published.weight_names import nested
from nvae_tf.reports.run_facts import Origin, read_origin
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.training_parts import VALUE

pytestmark = pytest.mark.torch

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run of published weights under a license."""
    place = tmp_path_factory.mktemp("imported") / "run"
    import_run(ImportChoices(FIXTURES / "normal_decoder_tiny.pt", place, license="cc-by-nc-4.0"))
    return place


@pytest.fixture
def run(imported, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(imported, tmp_path / "run"))


@pytest.fixture
def choices(run, tmp_path):
    return ExportChoices(run, tmp_path / "x.pt", with_optimizer=False)


def content_of(path):
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    """That run as a file."""
    file = tmp_path_factory.mktemp("exported") / "back.pt"
    export_file(ExportChoices(imported, file, with_optimizer=False))
    return file


def changed(exported, path, **own):
    """The file with something else of this project's own in it."""
    import torch

    content = content_of(exported)
    content["nvae_tf"] |= own
    torch.save(content, path)
    return path


def test_source_and_license_are_kept(imported, exported, tmp_path):
    import_run(ImportChoices(exported, tmp_path / "again"))
    assert (tmp_path / "again" / "origin.json").read_text() == (imported / "origin.json").read_text()
    card = (tmp_path / "again" / "README.md").read_text()
    assert 'license: "cc-by-nc-4.0"' in card and "imported from `normal_decoder_tiny.pt`" in card


def test_a_license_that_is_given_counts(imported, exported, tmp_path):
    import_run(ImportChoices(exported, tmp_path / "again", license="mit"))
    origin = dataclasses.replace(read_origin(RunFolder(imported)), license="mit")
    assert read_origin(RunFolder(tmp_path / "again")) == origin


@pytest.mark.slow
def test_the_license_of_weights_that_were_trained_here(exported, tmp_path):
    file = changed(exported, tmp_path / "x.pt", origin=Origin(license="mit").text())
    imported = import_run(ImportChoices(file, tmp_path / "again"))
    origin = read_origin(RunFolder(tmp_path / "again"))
    assert (origin.source_file, origin.license, origin.step) == ("x.pt", "mit", imported.step) and origin.sha256


def test_of_an_older_version_nothing_is_made_up(exported, tmp_path):
    """No license, and no number of images a step."""
    file, images = tmp_path / "x.pt", '{"train": 20, "test": 4}\n'
    imported = import_run(ImportChoices(changed(exported, file, origin=None, images=images), tmp_path / "again"))
    assert imported.images_a_step is None and (tmp_path / "again" / "images.json").read_text() == images
    assert read_origin(RunFolder(tmp_path / "again")).license is None
    card = (tmp_path / "again" / "README.md").read_text()
    assert "None is recorded." in card and "license:" not in card


def test_a_fine_tuned_run_names_the_first_source(imported, run, choices):
    config = json.loads((run / "config.json").read_text())
    config["train"]["initialise_from"] = str(imported)
    (run / "config.json").write_text(json.dumps(config))
    (run / "origin.json").unlink()
    export_file(choices)
    expected = dataclasses.replace(read_origin(RunFolder(imported)), step=None)
    assert content_of(choices.output)["nvae_tf"]["origin"] == expected.text()


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"test": 4, "a_step": 2}', '{"train": 20, "test": 4, "a_step": 0}', "\xff"]
)
def test_damaged_numbers_of_images_are_named(text, run, choices):
    (run / "images.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run/images\.json: .*; mend it, or delete it"):
        export_file(choices)
    assert not choices.output.exists()


@pytest.mark.parametrize(("name", "value"), [("images", "{"), ("images", [1]), ("origin", '{"license": 4}')])
def test_damage_of_what_goes_along_is_told(name, value, exported, tmp_path):
    file = changed(exported, tmp_path / "bad.pt", **{name: value})
    with pytest.raises(ValueError, match=rf"bad\.pt: 'nvae_tf' has '{name}' that can't be read"):
        import_run(ImportChoices(file, tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_full_disk_is_told_in_one_line(run, tmp_path, capsys):
    """The system takes no more than so many bytes of a file."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(SystemExit) as stopped:
            export_torch_checkpoint.main([f"--workdir={run}", f"--output={tmp_path / 'x.pt'}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path / 'x.pt'}: could not be written")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def delete(file):
    file.unlink()


def cut(file):
    if file.suffix != ".index":
        file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("happens", "message"), [(delete, "is gone; a training that runs beside"), (cut, "is damaged")]
)
def test_a_checkpoint_that_changes_meanwhile(happens, message, run, choices, monkeypatch):
    def looked_at(model, prefix):
        check(model, prefix)
        for file in (run / "checkpoints").glob("step-7.*"):
            happens(file)

    check = exporting.check_architecture
    monkeypatch.setattr(exporting, "check_architecture", looked_at)
    with pytest.raises(ValueError, match=f"step-7: the checkpoint .*{message}"):
        export_file(choices)
    assert not choices.output.exists()


def test_what_a_checkpoint_lacks_is_told_by_part(run, choices):
    config = json.loads((run / "config.json").read_text())
    config["optimizer"]["ema_momentum"] = 0.9
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"step-7: lacks .*; leave --running_means out"):
        export_file(choices._replace(running_means=True))
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / "step-7"))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("model/")]
    weights = {name.removeprefix("model/").removesuffix(VALUE): tf.Variable(reader.get_tensor(name)) for name in names}
    tf.train.Checkpoint(model=nested(weights)).write(str(run / "checkpoints" / "step-9"))
    with pytest.raises(ValueError, match=r"step-9: lacks .*; give --without_optimizer"):
        export_file(choices._replace(with_optimizer=True))
    assert export_file(choices).step == 9
