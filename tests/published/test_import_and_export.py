import argparse
import csv
import dataclasses
import hashlib
import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
import nvae_tf.published.torch_file as torch_files
from nvae_tf.config import ExperimentConfig, ModelConfig, OptimizerConfig, config_to_json, resolve_lengths
from nvae_tf.data.spec import complete_config
from nvae_tf.presets import experiment_config, load_settings
from nvae_tf.published import settings as forms
from nvae_tf.published.conversion import export_file, import_run
from nvae_tf.published.tensor_names import published_shape, published_tensors
from nvae_tf.published.torch_file import read_torch_checkpoint
from nvae_tf.runs.checkpoints import TrainingState
from nvae_tf.runs.loading import load_run, model_for_training
from nvae_tf.runs.run_folder import Origin, RunFolder, read_run_config
from tests import FIXTURES, refuses
from tests.command_fixtures import output_of
from tests.tiny_model import assert_same

pytestmark = pytest.mark.torch

WITHOUT_INFORMATION = ("num_batches_tracked", "weight_normalized")
STEP = 7


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("torch")


@pytest.fixture(scope="module")
def trained_run(place):
    import_run(FIXTURES / "cifar10_tiny.pt", place / "run", license="cc-by-nc-4.0", report=place / "report.csv")
    return place / "run"


@pytest.fixture
def run(trained_run, tmp_path):
    return pathlib.Path(shutil.copytree(trained_run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def own_run(place):
    """A run of this project after two steps, which keeps moving averages of its weights."""
    model = dict(num_groups_per_scale=2, num_latent_per_group=2, num_channels_encoder=2, num_channels_decoder=2)
    model |= dict(num_cells_per_group_encoder=1, num_cells_per_group_decoder=1, num_mixtures=2, num_flows=1)
    config = ExperimentConfig(ModelConfig(**model), optimizer=OptimizerConfig(ema_momentum=0.5, warmup_epochs=0.0))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path="/images"))
    folder = RunFolder(place / "own")
    model, state = state_of(folder, config)
    for _ in range(2):
        model.train_step(np.random.default_rng(0).uniform(size=[2, 32, 32, 3]).astype(np.float32))
    state.save(2)
    folder.config_file.write_text(config_to_json(config))
    folder.images_file.write_text('{"train": 20, "test": 4, "a_step": 2}\n')
    return folder.path


@pytest.fixture(scope="module")
def own_file(own_run, place):
    text = export_file(own_run, place / "own.pt")
    assert "as a checkpoint of cifar10" in text and "--running_means" in text
    return place / "own.pt"


def state_of(folder, config):
    """Model and state as train.main has them before it goes on."""
    made = model_for_training(config, 10, config.objective.total_steps)
    made.model.optimizer.build(made.model.trainable_variables)
    return made.model, TrainingState(folder.checkpoints, made.model, 2, schedule=made.schedule)


def numbers(workdir):
    """All numbers of a run's only checkpoint, by name. (What else it has are the objects' names in this process.)"""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(workdir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    values = {name: reader.get_tensor(name) for name in names}
    return {name: (value.dtype, value.shape, value.tobytes()) for name, value in values.items()}


def rows_of(path):
    with path.open(newline="") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


# With flows and colors there are tests/test_parity.py and the runs below.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_tiny", "normal_decoder_tiny"])
def test_back_in_the_published_form(name, published, tmp_path):
    file = FIXTURES / f"{name}.pt"
    content, expected = published.read(file), nvae_tf.from_torch_checkpoint(file)
    import_run(file, tmp_path / "run", license="cc-by-4.0")
    run, args = load_run(tmp_path / "run"), content["args"]
    assert run.config.model == expected.config and run.step == STEP
    for weight, value in zip(run.model.weights, expected.weights, strict=True):
        if "vectors" not in weight.path:
            np.testing.assert_array_equal(weight, value, err_msg=weight.path)
    assert (run.config.train.seed, run.config.train.epochs) == (args.seed, args.epochs)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert Origin.read(tmp_path / "run" / "origin.json") == Origin(f"{name}.pt", sha256, "cc-by-4.0", STEP)

    export_file(tmp_path / "run", tmp_path / "back.pt")
    back = published.read(tmp_path / "back.pt")
    assert list(back["state_dict"]) == list(content["state_dict"])
    for key, value in content["state_dict"].items():
        written = back["state_dict"][key]
        assert written.dtype == value.dtype and written.shape == value.shape
        assert key.endswith("num_batches_tracked") or (written == value).all(), key
    assert set(back) == {*content, "nvae_tf"} and back["arch_instance"] == content["arch_instance"]
    assert (back["global_step"], back["scheduler"], back["grad_scalar"]) == (STEP, {}, {})
    assert vars(back["args"]) == vars(args)
    import_run(tmp_path / "back.pt", tmp_path / "again")
    assert numbers(tmp_path / "again") == numbers(tmp_path / "run")
    for file in ("config.json", "origin.json"):
        assert (tmp_path / "again" / file).read_text() == (tmp_path / "run" / file).read_text()


@pytest.mark.slow
def test_training_goes_on_at_the_files_step_with_moments_of_zero(trained_run):
    model, state = state_of(RunFolder(trained_run), read_run_config(RunFolder(trained_run)))
    assert state.restore() == STEP
    assert int(model.optimizer.iterations.numpy()) == STEP
    slots = [model.optimizer.slots_of(variable) for variable in model.trainable_variables]
    assert not any(np.any(momentum.numpy()) for momentum, _ in slots)


@pytest.mark.slow
def test_an_import_of_an_exported_file_has_its_weights_and_settings(own_run, own_file, tmp_path):
    moved = dict(data_path="/elsewhere", data_source="folder")
    imported = import_run(own_file, tmp_path / "back", **moved)
    written, read = numbers(own_run), numbers(tmp_path / "back")
    names = [name for name in written if name.startswith(("model/bottom_up", "model/top_down"))]
    assert names and {name: read[name] for name in names} == {name: written[name] for name in names}
    assert (tmp_path / "back" / "images.json").read_text() == (own_run / "images.json").read_text()
    config = read_run_config(RunFolder(own_run))
    data = dataclasses.replace(config.data, path="/elsewhere", source="folder")
    assert imported.config == dataclasses.replace(config, data=data)
    # The settings that training continues with.
    settings = complete_config(load_settings(str(tmp_path / "back" / "config.json")))
    length = 10, config.objective.total_steps
    assert resolve_lengths(settings, *length) == resolve_lengths(imported.config, *length)


@pytest.mark.slow
def test_a_file_that_version_0_1_exported_with_the_state_of_training(published, tmp_path):
    file = FIXTURES / "version_0_1.pt"
    assert import_run(file, tmp_path / "run").step == 2
    bias = published.read(file)["state_dict"]["stem.bias"]
    np.testing.assert_array_equal(nvae_tf.load(tmp_path / "run").bottom_up.stem.bias[0], bias)


@pytest.mark.slow
def test_the_weights_or_their_running_means_are_exported(own_run, own_file, published, tmp_path):
    means_file = tmp_path / "means.pt"
    export_file(own_run, means_file, running_means=True)
    reader = tf.train.load_checkpoint(str(own_run / "checkpoints" / "step-2"))
    weights = reader.get_tensor("model/bottom_up/stem/bias/.ATTRIBUTES/VARIABLE_VALUE")
    scored = nvae_tf.load(own_run)
    means = scored.bottom_up.stem.bias.numpy()
    assert np.any(weights != means)
    for file, expected in ((own_file, weights), (means_file, means)):
        np.testing.assert_array_equal(published.read(file)["state_dict"]["stem.bias"], expected[0])
    import_run(means_file, tmp_path / "back")
    np.testing.assert_array_equal(nvae_tf.load(tmp_path / "back").generate(2, seed=1), scored.generate(2, seed=1))


def with_settings(run, **groups):
    config = json.loads((run / "config.json").read_text())
    for group, settings in groups.items():
        config[group] |= settings
    (run / "config.json").write_text(json.dumps(config))
    (run / "checkpoints" / "config.json").unlink(missing_ok=True)


def test_runs_that_can_not_be_exported(run, small_files, tmp_path):
    output = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=r"step-7: has no moving averages .*; leave --running_means out"):
        export_file(run, output, running_means=True)
    small_files(50_000)
    refuses(r"^\S*/x\.pt: could not be written \([^\n]*$", export_file, run, output, error=OSError)
    small_files(None)
    (run / "images.json").write_text("[1]")
    refuses(r"copy/images\.json: ", export_file, run, output)
    with_settings(run, model={"exact_edges": True})
    refuses(r"copy: the published form can't say model\.exact_edges = True", export_file, run, output)
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy"]


@pytest.mark.slow
def test_source_and_license_of_weights(own_file, trained_run, run, published, tmp_path):
    # Trained here, under a license that a person has stated; an older version noted no number of images a step.
    content, images = published.read(own_file), '{"train": 20, "test": 4}\n'
    content["nvae_tf"] |= {"origin": Origin(license="mit").text(), "images": images}
    imported = import_run(published.saved(content, tmp_path / "x.pt"), tmp_path / "trained")
    assert imported.images.a_step is None and (tmp_path / "trained" / "images.json").read_text() == images
    origin = Origin.read(tmp_path / "trained" / "origin.json")
    assert (origin.source_file, origin.license, origin.step) == ("x.pt", "mit", 2) and origin.sha256
    content["args"].num_nf = 2
    with pytest.raises(ValueError, match=r"contradict each other; 'nvae_tf' has model\.num_flows = 1"):
        import_run(published.saved(content, tmp_path / "x.pt"), tmp_path / "none")
    content["nvae_tf"]["origin"] = '{"license": 4}'
    with pytest.raises(ValueError, match=r"x\.pt: .*'nvae_tf' can't be read .*license"):
        import_run(published.saved(content, tmp_path / "x.pt"), tmp_path / "none")
    with_settings(run, train={"initialize_from": str(trained_run)})
    (run / "origin.json").unlink()
    export_file(run, tmp_path / "tuned.pt")
    expected = dataclasses.replace(Origin.read(trained_run / "origin.json"), step=None)
    assert published.read(tmp_path / "tuned.pt")["nvae_tf"]["origin"] == expected.text()


def test_every_tensor_is_reported_in_files_that_are_refused_too(trained_run, place, published, tmp_path):
    content, rows = published.read("cifar10_tiny.pt"), rows_of(place / "report.csv")
    assert set(rows) == set(content["state_dict"])
    row = rows["enc_sampler.2.weight"]
    assert (row["shape"], row["dtype"], row["index"]) == ("8x16x3x3", "float32", "2")
    assert (row["target"], row["target_shape"]) == ("top_down/scales/0/posteriors/kernel", "3x3x3x16x8")
    ignored = {name for name, row in rows.items() if row["note"].startswith("ignored")}
    assert ignored == {name for name in content["state_dict"] if name.endswith(WITHOUT_INFORMATION)}
    assert all(row["target"] or row["note"] for row in rows.values())

    content, report = published.read("mnist_tiny.pt"), tmp_path / "report.csv"
    state = content["state_dict"]
    state.pop("stem.bias")
    state["enc0.1.bias"] = state["enc0.1.bias"][:3]
    state["other"] = state["stem.weight"]
    file = published.saved(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt: .* missing: stem\.bias; .*: enc0\.1\.bias .*; 1 unknown: other"):
        import_run(file, tmp_path / "run", report=report)
    rows = rows_of(report)
    assert rows["stem.bias"]["note"] == "missing" and rows["other"]["note"] == "unknown"
    assert "needs" in rows["enc0.1.bias"]["note"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt", "report.csv"}


NAME = "normal_decoder_tiny"


@pytest.fixture
def content(published):
    return published.read(f"{NAME}.pt")


@pytest.fixture
def saved(published, tmp_path):
    return lambda content, **settings: published.saved(content, tmp_path / "saved.pt", **settings)


def refused(path):
    """The message of a file that is refused, one line; what damage and foreign objects lead to is in robustness/."""
    text = refuses("", read_torch_checkpoint, path)
    message = text
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny"])
def test_the_file_has_the_recorded_weights_and_settings(name, published):
    """The published files whose numbers tests/test_parity.py replays; what is made of them is seen above."""
    checkpoint = read_torch_checkpoint(published.path(f"{name}.pt"))
    settings, state = published.recorded(name)
    assert forms.model_config_from_published(checkpoint.settings) == forms.model_config_from_published(settings)
    assert forms.objective_config_from_published(checkpoint.settings).regularization == settings["weight_decay_norm"]
    for key, value in state.items():
        # The recorded names of inner norms are the shorter ones.
        longer = ".bn.".join(key.rsplit(".", 1))
        read = checkpoint.state[key if key in checkpoint.state else longer]
        np.testing.assert_array_equal(read, value, err_msg=key)


def test_deflated_archives_and_archives_without_checksums_are_read(published, content, saved, tmp_path):
    import torch

    expected = read_torch_checkpoint(published.path(f"{NAME}.pt")).state
    with zipfile.ZipFile(published.path(f"{NAME}.pt")) as stored, zipfile.ZipFile(tmp_path / "x.pt", "w") as deflated:
        for number, name in enumerate(stored.namelist()):
            deflated.writestr(name, stored.read(name), zipfile.ZIP_STORED if number % 3 else zipfile.ZIP_DEFLATED)
    assert_same(read_torch_checkpoint(tmp_path / "x.pt").state, expected)
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(content)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch_checkpoint(path).state, expected)


def test_files_of_another_form(content, saved):
    import torch

    assert "not an NVAE checkpoint" in refused(saved({"state_dict": {}}))
    state = {"a\nb": content["state_dict"]["stem.weight"]}
    assert "'state_dict' does not hold values by names" in refused(saved({**content, "state_dict": state}))
    repeated = {"stem.weight": torch.zeros(1, 1).expand(10**9, 10**9)}
    assert "far larger than the file" in refused(saved({**content, "state_dict": repeated}))
    path = saved(content)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[-1], b"")
    assert "two records of one name" in refused(path)


def test_other_forms_that_are_read(content, saved):
    import torch

    state = content["state_dict"]
    state["stem.weight"] = torch.nn.Parameter(state["stem.weight"])
    weight = state["enc0.1.weight"].bfloat16()
    state["enc0.1.weight"] = weight
    # In another script; and sharing of numbers is no fault.
    state["weiß.重み"] = state["stem.weight"]
    checkpoint = read_torch_checkpoint(saved({**content, "args": vars(content["args"])}))
    assert dict(checkpoint.settings) == vars(content["args"]) and checkpoint.state.keys() == state.keys()
    np.testing.assert_array_equal(checkpoint.state["enc0.1.weight"].astype(np.float32), weight.float().numpy())
    old_form = read_torch_checkpoint(saved(content, _use_new_zipfile_serialization=False))
    assert_same(old_form.state, checkpoint.state)


def test_weights_that_do_not_fit_their_settings_are_named_with_the_file(content, saved, monkeypatch):
    content["args"].num_channels_enc += 2
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* stem\.weight has shape"):
        nvae_tf.from_torch_checkpoint(saved(content))
    content["args"].num_channels_enc = 4096
    monkeypatch.setattr(torch_files, "NVAE", lambda *_: pytest.fail("the model is made"))
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* at least [0-9,]{7,}"):
        nvae_tf.from_torch_checkpoint(saved(content))


# A file of a fifth of a gigabyte, of few groups with many channels: models of many groups take long to make.
FEW = {"model.num_groups_per_scale": 2, "model.num_channels_encoder": 320, "model.num_channels_decoder": 320}
MEGABYTE = 1 << 20
# Imports, and prints the peak of the process's memory above a process that has only started its libraries, in kB.
PROGRAM = """
import pathlib, sys
from nvae_tf.errors import start_tensorflow_quietly
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
start_tensorflow_quietly()
import torch
before = peak()
from nvae_tf.published.conversion import import_run
import_run(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
print(peak() - before)
"""


def write_published_file(path, published):
    """Writes a file of numbers drawn once; returns its parameters and its last weight."""
    import torch

    config = experiment_config("cifar10", FEW)
    drawn = 0.05 * torch.randn(30_000_000, generator=torch.Generator().manual_seed(0))
    state, parameters = {}, 0
    for number, tensor in enumerate(published_tensors(published.without_arrays(config.model))):
        shape = published_shape(tensor)
        size = int(np.prod(shape))
        # A tensor of its own: a view would bring all that were drawn into the file.
        value = drawn[7 * number : 7 * number + size].reshape(shape).clone()
        state[tensor.names[0]] = value.abs() + 0.5 if tensor.names[0].endswith("running_var") else value
        if tensor.companion is not None:
            state[tensor.companion] = value if tensor.companion.endswith("weight_normalized") else torch.tensor(9)
        parameters += size * tensor.variable.trainable
    settings, tables = argparse.Namespace(**forms.published_settings(config)), forms.cell_tables(config.model.cell_set)
    content = {"epoch": 400, "global_step": 78_000, "state_dict": state, "args": settings, "arch_instance": tables}
    torch.save(content, path)
    return parameters, state["image_conditional.1.weight"].numpy()


@pytest.mark.slow
def test_a_large_file_is_imported_in_little_memory(published, tmp_path):
    file, run = tmp_path / "published.pt", tmp_path / "run"
    try:
        parameters, last = write_published_file(file, published)
        peak = 1024 * int(output_of(["-c", PROGRAM, file, run]).split()[-1])
        # The model's: its weights and the optimizer's slots.
        assert peak <= file.stat().st_size + 3 * 4 * parameters + 100 * MEGABYTE
        reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(run / "checkpoints"))
        kernel = reader.get_tensor("model/top_down/image/kernel/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(kernel[0], last.transpose(2, 3, 1, 0))
    finally:
        # Gigabytes are not left for the next test.
        shutil.rmtree(tmp_path)
