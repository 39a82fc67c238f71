import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
import nvae_tf.published.export_file as exporting
import nvae_tf.published.import_run as importing
from nvae_tf.config import ExperimentConfig, ModelConfig, OptimizerConfig, config_to_json, resolve_lengths
from nvae_tf.data.spec import complete_config
from nvae_tf.presets import load_settings
from nvae_tf.published.export_file import export_file
from nvae_tf.published.import_run import import_run
from nvae_tf.published.names import nested
from nvae_tf.published.torch_file import read_torch_checkpoint
from nvae_tf.reports.run_facts import Origin, read_origin
from nvae_tf.training.checkpoints import VALUE, TrainingState
from nvae_tf.training.loading import load_run
from nvae_tf.training.run import model_for_training
from nvae_tf.training.run_folder import RunFolder, read_run_config
from tests import FIXTURES

pytestmark = pytest.mark.torch

NO_PARAMETER = ("running_mean", "running_var", "num_batches_tracked", "weight_normalized")
STEP = 7


def parameters(content):
    """The parameters' names, in the order in which optimizers count them."""
    return [name for name in content["state_dict"] if not name.endswith(NO_PARAMETER)]


def with_optimizer(content):
    """The content with moments for each parameter but the second, as if that never had a gradient."""
    import torch

    generator = torch.Generator().manual_seed(3)
    names, state = parameters(content), {}
    for number, name in enumerate(names):
        shape = content["state_dict"][name].shape
        moments = torch.randn(shape, generator=generator), 1e-3 + torch.rand(shape, generator=generator)
        state[number] = {"step": STEP, "exp_avg": moments[0], "exp_inf": moments[1]}
    del state[1]
    group = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 3e-4, "params": list(range(len(names)))}
    return {**content, "optimizer": {"state": state, "param_groups": [group]}}


@pytest.fixture(scope="module", autouse=True)
def without_numbers():
    """An export needs names and shapes of a model, in a graph of its own: that of equal settings is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "model_for_training", functools.cache(model_for_training))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("torch")


@pytest.fixture(scope="module")
def trained_file(place, published):
    return published.saved(with_optimizer(published.read("cifar10_tiny.pt")), place / "trained.pt")


@pytest.fixture(scope="module")
def trained_run(trained_file, place):
    import_run(trained_file, place / "run", license="cc-by-nc-4.0", report=place / "report.csv")
    return place / "run"


@pytest.fixture
def run(trained_run, tmp_path):
    return pathlib.Path(shutil.copytree(trained_run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def own_run(place):
    """A run of this project after two steps, with all that only it has: moving averages, vectors, metrics."""
    model = dict(num_groups_per_scale=2, num_latent_per_group=2, num_channels_encoder=2, num_channels_decoder=2)
    model |= dict(num_cells_per_group_encoder=1, num_cells_per_group_decoder=1, num_mixtures=2, num_flows=1)
    config = ExperimentConfig(ModelConfig(**model), optimizer=OptimizerConfig(ema_momentum=0.5, warmup_epochs=0.0))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path="/images"))
    made = model_for_training(config, 10, config.objective.total_steps)
    made.model.optimizer.build(made.model.trainable_variables)
    folder = RunFolder(place / "own")
    state = TrainingState(folder.checkpoints, made.model, made.model.optimizer, 2, others=made.variables)
    for _ in range(2):
        made.model.train_step(np.random.default_rng(0).uniform(size=[2, 32, 32, 3]).astype(np.float32))
    # Smaller than what single precision has left beside epsilon.
    norm = made.model.optimizer.slots_of(made.model.bottom_up.stem.kernel).norm
    norm.assign(np.random.default_rng(0).normal(size=norm.shape) * 1e-14)
    state.save(2)
    folder.config_file.write_text(config_to_json(config))
    folder.images_file.write_text('{"train": 20, "test": 4, "a_step": 2}\n')
    return folder.path


@pytest.fixture(scope="module")
def own_file(own_run, place):
    exported = export_file(own_run, place / "own.pt")
    assert exported.leaves_means and exported.data_set == "cifar10"
    return place / "own.pt"


def restored(workdir):
    """Model and optimizer as train.main has them before it goes on."""
    config = read_run_config(RunFolder(workdir))
    made = model_for_training(config, 10, config.objective.total_steps)
    made.model.optimizer.build(made.model.trainable_variables)
    state = TrainingState(workdir / "checkpoints", made.model, made.model.optimizer, 2, others=made.variables)
    assert state.restore() == STEP
    return made.model


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
    imported = import_run(file, tmp_path / "run", license="cc-by-4.0")
    run, args = load_run(tmp_path / "run"), content["args"]
    assert run.config.model == expected.config and run.step == STEP and not imported.has_optimizer
    for weight, value in zip(run.model.weights, expected.weights, strict=True):
        if "vectors" not in weight.path:
            np.testing.assert_array_equal(weight, value, err_msg=weight.path)
    assert (run.config.train.seed, run.config.train.epochs) == (args.seed, args.epochs)
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert origin == {"source_file": f"{name}.pt", "sha256": sha256, "license": "cc-by-4.0", "step": STEP}
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"imported from `{name}.pt` (SHA-256 `{sha256}`)" in card and "license: cc-by-4.0" in card

    export_file(tmp_path / "run", tmp_path / "back.pt")
    back = published.read(tmp_path / "back.pt")
    assert list(back["state_dict"]) == list(content["state_dict"])
    for key, value in content["state_dict"].items():
        found = back["state_dict"][key]
        assert found.dtype == value.dtype and found.shape == value.shape
        assert key.endswith("num_batches_tracked") or (found == value).all(), key
    assert set(back) == {*content, "nvae_tf"} and back["arch_instance"] == content["arch_instance"]
    assert (back["global_step"], back["scheduler"], back["grad_scalar"]) == (STEP, {}, {})
    assert vars(back["args"]) == vars(args)
    import_run(tmp_path / "back.pt", tmp_path / "again")
    assert numbers(tmp_path / "again") == numbers(tmp_path / "run")
    for file in ("config.json", "origin.json"):
        assert (tmp_path / "again" / file).read_text() == (tmp_path / "run" / file).read_text()


@pytest.mark.slow
def test_moments_and_step_are_at_their_places(trained_file, trained_run, published):
    content, model = published.read(trained_file), restored(trained_run)
    names, state = parameters(content), content["optimizer"]["state"]
    optimizer = model.optimizer
    assert int(optimizer.iterations.numpy()) == STEP
    for name, variable, layout in (
        ("enc_sampler.2.weight", model.top_down.scales[0].posteriors.kernel, (2, 3, 1, 0)),
        ("enc_tower.2.se.se.2.weight", model.bottom_up.scales[0].cells.gate.expand_kernel, (1, 0)),
        ("dec_tower.3._ops.0.conv.0.bn.bias", model.top_down.scales[0].cells.branch.parts[0].beta, (0,)),
    ):
        moments, slots = state[names.index(name)], optimizer.slots_of(variable)
        index = {"enc_sampler": 2, "enc_tower": 1, "dec_tower": 1}[name.split(".")[0]]
        exp_avg, exp_inf = (moments[key].numpy().transpose(layout) for key in ("exp_avg", "exp_inf"))
        np.testing.assert_array_equal(slots.momentum[index], exp_avg)
        np.testing.assert_allclose(slots.norm[index], exp_inf.astype(np.float64) - 1e-3, rtol=1e-6, atol=1e-10)
    untouched = optimizer.slots_of(model.bottom_up.stem.kernel)
    assert np.all(untouched.momentum.numpy() == 0.0) and np.all(untouched.norm.numpy() == np.float32(-1e-3))
    # The vectors, which the file lacks, are iterated from the start.
    norms = np.concatenate(model.spectral_regularizer.norms(nvae_tf.layers.ForwardPass(training=True)))
    exact = [
        np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        for stack in model.convolutions
        for kernel in stack.effective_kernels().numpy()
    ]
    np.testing.assert_allclose(norms, exact, rtol=0.02)


@pytest.mark.slow
def test_the_next_step_is_that_of_torch(trained_run, published, tmp_path):
    """Torch's own Adamax takes the exported state, and both move by the same."""
    import torch

    export_file(trained_run, tmp_path / "back.pt")
    content, model = published.read(tmp_path / "back.pt"), restored(trained_run)
    names = parameters(content)
    weights = [torch.nn.Parameter(content["state_dict"][name].clone()) for name in names]
    theirs = torch.optim.Adamax(weights, lr=1.0)
    theirs.load_state_dict(content["optimizer"])
    ours, kernel = model.optimizer, model.bottom_up.top.kernel
    theirs.param_groups[0]["lr"] = float(ours.learning_rate)
    gradients = [tf.zeros(variable.shape) for variable in model.trainable_variables]
    index = next(i for i, variable in enumerate(model.trainable_variables) if variable is kernel)
    gradients[index] = tf.constant(np.random.default_rng(0).normal(size=kernel.shape), tf.float32)
    number = names.index("enc0.1.weight")
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    weights[number].grad = torch.from_numpy(gradients[index][0].numpy().transpose(3, 2, 0, 1).copy())
    before = kernel.numpy()
    theirs.step()
    ours.apply(gradients, model.trainable_variables)
    expected = weights[number].detach().numpy().transpose(2, 3, 1, 0)
    # Beside it, in units of the last place, the weights lose more.
    assert np.abs(kernel[0] - before[0]).max() > 1e-2
    np.testing.assert_allclose(kernel[0] - before[0], expected - before[0], rtol=1e-4, atol=1e-6)
    bias = weights[names.index("enc0.1.bias")].detach().numpy()
    np.testing.assert_allclose(model.bottom_up.top.bias[0], bias, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_another_order_of_the_parameters_becomes_the_same_run(trained_file, trained_run, published, tmp_path):
    """Optimizers count parameters in the order of the file."""
    content, before = published.read(trained_file), trained_file.read_bytes()
    names, moments = parameters(content), content["optimizer"]["state"]
    content["state_dict"] = dict(reversed(content["state_dict"].items()))
    content["optimizer"]["state"] = {len(names) - 1 - number: saved for number, saved in moments.items()}
    assert parameters(content) == names[::-1]
    import_run(published.saved(content, tmp_path / "turned.pt"), tmp_path / "turned")
    assert numbers(tmp_path / "turned") == numbers(trained_run)
    # Pages of a mapped file are released while it is read; that changes nothing in it.
    assert trained_file.read_bytes() == before


@pytest.mark.slow
def test_without_the_optimizers_state_and_steps(trained_file, published, tmp_path):
    content = published.read(trained_file)
    del content["global_step"]
    file = published.saved(content, tmp_path / "x.pt")
    imported = import_run(file, tmp_path / "run", with_optimizer=False, report=tmp_path / "map.csv")
    assert imported.step == STEP and not imported.has_optimizer and "7 steps in 3 epochs" in imported.assumed
    row = rows_of(tmp_path / "map.csv")["optimizer.3.exp_avg"]
    assert (row["target"], row["note"]) == ("", "ignored: --without_optimizer")
    # Which are no whole number of steps each.
    export_file(tmp_path / "run", tmp_path / "back.pt")
    assert published.read(tmp_path / "back.pt")["epoch"] == 3
    optimizer = restored(tmp_path / "run").optimizer
    assert int(optimizer.iterations.numpy()) == STEP
    assert not any(np.any(slot.numpy()) for slot in optimizer._momentums)
    assert all(np.all(slot.numpy() == np.float32(-1e-3)) for slot in optimizer._norms)


@pytest.mark.slow
def test_an_old_file_without_some_settings_and_without_steps(published, tmp_path):
    content = published.read("normal_decoder_tiny.pt")
    for name in ("ada_groups", "min_groups_per_scale", "warmup_epochs"):
        delattr(content["args"], name)
    old = {key: value for key, value in content.items() if key not in ("optimizer", "epoch", "global_step")}
    path = published.saved(old, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not read_torch_checkpoint(path).is_mapped
    imported = import_run(path, tmp_path / "run")
    assert (imported.step, imported.defaults) == (0, ("optimizer.warmup_epochs",))
    expected = nvae_tf.from_torch_checkpoint(FIXTURES / "normal_decoder_tiny.pt")
    np.testing.assert_array_equal(nvae_tf.load(tmp_path / "run").generate(2, seed=1), expected.generate(2, seed=1))


@pytest.mark.slow
def test_import_after_export_is_the_identity(own_run, own_file, tmp_path):
    moved = dict(data_path="/elsewhere", data_source="folder")
    imported = import_run(own_file, tmp_path / "back", report=tmp_path / "own.csv", **moved)
    assert numbers(tmp_path / "back") == numbers(own_run)
    assert (tmp_path / "back" / "images.json").read_text() == (own_run / "images.json").read_text()
    config = read_run_config(RunFolder(own_run))
    data = dataclasses.replace(config.data, path="/elsewhere", source="folder")
    assert imported.config == dataclasses.replace(config, data=data)
    # What training goes on with.
    settings = complete_config(load_settings(str(tmp_path / "back" / "config.py")))
    length = 10, config.objective.total_steps
    assert resolve_lengths(settings, *length) == resolve_lengths(imported.config, *length)
    rows = rows_of(tmp_path / "own.csv")
    assert rows["optimizer.3.exp_avg"]["target"].startswith("momentum of ")
    assert rows["optimizer.3.exp_inf"]["note"].startswith("ignored: nvae_tf.optimizer has it")
    assert rows["nvae_tf.others/0"]["target"] == "others/0"


@pytest.mark.slow
def test_weights_alone_or_their_running_means(own_run, own_file, published, tmp_path):
    means_file, small_file = tmp_path / "means.pt", tmp_path / "small.pt"
    export_file(own_run, means_file, running_means=True)
    reader = tf.train.load_checkpoint(str(own_run / "checkpoints" / "step-2"))
    weights = reader.get_tensor("model/bottom_up/stem/bias/.ATTRIBUTES/VARIABLE_VALUE")
    scored = nvae_tf.load(own_run)
    means = scored.bottom_up.stem.bias.numpy()
    assert np.any(weights != means) and published.read(means_file)["optimizer"] == {}
    # A run that scores with its means scores with the same ones when it is back, from either file.
    for file, expected in ((own_file, weights), (means_file, means)):
        np.testing.assert_array_equal(published.read(file)["state_dict"]["stem.bias"], expected[0])
        import_run(file, tmp_path / file.stem)
        kernel = nvae_tf.load(tmp_path / file.stem).top_down.image.kernel
        np.testing.assert_array_equal(kernel, scored.top_down.image.kernel)
    export_file(own_run, small_file, with_optimizer=False)
    names = published.read(small_file)["nvae_tf"]["state"]
    assert not [name for name in names if name.startswith(("optimizer/", "others/", "metrics/"))]
    imported = import_run(small_file, tmp_path / "back")
    assert not imported.has_optimizer and imported.step == 2
    np.testing.assert_array_equal(nvae_tf.load(tmp_path / "back").generate(2, seed=1), scored.generate(2, seed=1))


def with_settings(run, **groups):
    config = json.loads((run / "config.json").read_text())
    for group, settings in groups.items():
        config[group] |= settings
    (run / "config.json").write_text(json.dumps(config))
    (run / "checkpoints" / "config.json").unlink(missing_ok=True)


def test_runs_that_can_not_be_exported(run, tmp_path):
    output = tmp_path / "x.pt"
    with pytest.raises(ValueError, match="keeps no moving averages"):
        export_file(run, output, running_means=True)
    with_settings(run, optimizer={"ema_momentum": 0.9})
    with pytest.raises(ValueError, match=r"step-7: lacks .*; leave --running_means out"):
        export_file(run, output, running_means=True)
    (run / "images.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"copy/images\.json: "):
        export_file(run, output)
    with_settings(run, model={"exact_edges": True})
    with pytest.raises(ValueError, match=r"copy: the published form can't say model\.exact_edges = True"):
        export_file(run, output)
    assert not output.exists()


def test_a_checkpoint_without_the_optimizers_state(run, tmp_path):
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / "step-7"))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("model/")]
    weights = {name.removeprefix("model/").removesuffix(VALUE): tf.Variable(reader.get_tensor(name)) for name in names}
    tf.train.Checkpoint(model=nested(weights)).write(str(run / "checkpoints" / "step-9"))
    with pytest.raises(ValueError, match=r"step-9: lacks .*; give --without_optimizer"):
        export_file(run, tmp_path / "x.pt")
    assert export_file(run, tmp_path / "x.pt", with_optimizer=False).step == 9


GONE = "was there a moment ago and is gone; a training that runs at the same time has replaced it by a later one"


@pytest.mark.parametrize("message", [GONE, "is damaged"])
def test_a_checkpoint_that_changes_meanwhile(message, run, tmp_path, monkeypatch):
    def checked(model, prefix):
        check(model, prefix)
        for file in (run / "checkpoints").glob("step-7.*"):
            if message == GONE:
                file.unlink()
            elif file.suffix != ".index":
                file.write_bytes(file.read_bytes()[:1000])

    check = exporting.check_architecture
    monkeypatch.setattr(exporting, "check_architecture", checked)
    with pytest.raises(ValueError, match=f"step-7: the checkpoint .*{message}"):
        export_file(run, tmp_path / "x.pt", with_optimizer=False)
    assert not (tmp_path / "x.pt").exists()


def test_a_full_disk_is_reported_in_one_line(trained_run, small_files, tmp_path):
    small_files(50_000)
    with pytest.raises(OSError, match=r"^\S*/x\.pt: could not be written, .* left on its disk \([^\n]*$"):
        export_file(trained_run, tmp_path / "x.pt", with_optimizer=False)
    small_files(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_source_and_license_of_weights(own_file, trained_run, run, published, tmp_path):
    def imported(name, **own):
        content = published.read(own_file)
        content["nvae_tf"] |= own
        return import_run(published.saved(content, tmp_path / "x.pt"), tmp_path / name)

    # Trained here, under a license that a person has stated.
    imported("trained", origin=Origin(license="mit").text())
    origin = read_origin(RunFolder(tmp_path / "trained"))
    assert (origin.source_file, origin.license, origin.step) == ("x.pt", "mit", 2) and origin.sha256
    # By an older version: nothing is made up.
    images = '{"train": 20, "test": 4}\n'
    assert imported("again", origin=None, images=images).images.a_step is None
    assert (tmp_path / "again" / "images.json").read_text() == images
    card = (tmp_path / "again" / "README.md").read_text()
    assert "None is recorded." in card and "license:" not in card
    with_settings(run, train={"initialise_from": str(trained_run)})
    (run / "origin.json").unlink()
    export_file(run, tmp_path / "tuned.pt", with_optimizer=False)
    expected = dataclasses.replace(read_origin(RunFolder(trained_run)), step=None)
    assert published.read(tmp_path / "tuned.pt")["nvae_tf"]["origin"] == expected.text()


def test_the_report_has_every_tensor(trained_file, trained_run, place, published):
    content, rows = published.read(trained_file), rows_of(place / "report.csv")
    numbers = content["optimizer"]["state"]
    moments = {f"optimizer.{number}.{name}" for number in numbers for name in ("exp_avg", "exp_inf")}
    assert set(rows) == set(content["state_dict"]) | moments
    row = rows["enc_sampler.2.weight"]
    assert (row["shape"], row["dtype"], row["index"]) == ("8x16x3x3", "float32", "2")
    assert (row["target"], row["target_shape"]) == ("top_down/scales/0/posteriors/kernel", "3x3x3x16x8")
    assert rows["optimizer.0.exp_avg"]["target"] == "momentum of top_down/start"
    ignored = {name for name, row in rows.items() if row["note"].startswith("ignored")}
    assert ignored == {name for name in content["state_dict"] if name.endswith(NO_PARAMETER[2:])}
    assert all(row["target"] or row["note"] for row in rows.values())


def test_faults_are_named_and_reported_and_nothing_is_written(published, tmp_path, monkeypatch):
    content, report = published.read("mnist_tiny.pt"), tmp_path / "report.csv"
    state = content["state_dict"]
    bias = state.pop("stem.bias")
    state["enc0.1.bias"] = state["enc0.1.bias"][:3]
    state["other"] = state["stem.weight"]
    file = published.saved(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt: .* missing: stem\.bias; .*: enc0\.1\.bias .*; 1 unknown: other"):
        import_run(file, tmp_path / "run", report=report)
    rows = rows_of(report)
    assert rows["stem.bias"]["note"] == "missing" and rows["other"]["note"] == "unknown"
    assert "needs" in rows["enc0.1.bias"]["note"]
    monkeypatch.setattr(importing, "model_for_training", lambda *_, **__: pytest.fail("the model is made"))
    content["args"].num_channels_dec = 4096
    state["stem.bias"] = bias
    with pytest.raises(ValueError, match=r"bad\.pt: the published weights do not fit .* has at least [\d,]+ numbers"):
        import_run(published.saved(content, file), tmp_path / "run", report=report)
    assert "a larger model" in rows_of(report)["stem.bias"]["note"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt", "report.csv"}


def moments(content, number, **changes):
    state = content["optimizer"]["state"][number]
    # A function is given what there is.
    state.update({name: new(state[name]) if callable(new) else new for name, new in changes.items()})


def group(content, **changes):
    content["optimizer"]["param_groups"][0].update(changes)


def with_second(value):
    return lambda tensor: tensor.view(-1)[1:2].fill_(float(value)) is None or tensor


def own_state(content, name, change):
    """Changes this project's own state, or gives it `name` with what another has."""
    state = content["nvae_tf"]["state"]
    state[name or next(iter(state))] = change(state["others/0"] if name else state[next(iter(state))])


@pytest.mark.slow
def test_states_and_settings_that_do_not_fit_are_named(trained_file, own_file, published, tmp_path, monkeypatch):
    # All are refused, so that it does not matter what of a file a model has got.
    monkeypatch.setattr(importing, "model_for_training", functools.cache(model_for_training))
    of_torch = [
        (lambda c: moments(c, 5, exp_inf=None), r"parameter 5, .*has no numbers as exp_inf.*--without_optimizer"),
        (lambda c: moments(c, 0, exp_avg=lambda t: t[:1]), r"parameter 0, prior_ftr0, has shape \(1, .* as exp_avg, "),
        (lambda c: c["optimizer"]["state"][3].pop("step"), "a parameter without step"),
        (lambda c: c["optimizer"]["param_groups"][0]["params"].pop(), "of 225 parameters, and the model has 226"),
        (lambda c: c["optimizer"].pop("param_groups"), "must have exactly one group in .*--without_optimizer"),
        (lambda c: group(c, betas=(0.9, 0.99)), r"was made with betas = \(0\.9, 0\.99\), .* \(0\.9, 0\.999\); .*--wit"),
        (lambda c: group(c, eps=1e-8), r"was made with eps = 1e-08, and .* 0\.001; .*--without_optimizer"),
        (lambda c: group(c, params=[0] * 226), "params that are no list of different numbers"),
        (lambda c: c["optimizer"]["state"].update({226: {}}), "is of parameter 226, which its params lack"),
        (lambda c: c["optimizer"].update(state=[1]), "no mapping from parameters to their moments"),
        (
            lambda c: moments(c, 0, exp_inf=with_second("nan")),
            "exp_inf of prior_ftr0 holds NaN or infinity; .*--without",
        ),
        (lambda c: with_second("inf")(c["state_dict"]["enc0.1.weight"]), r"bad\.pt: enc0\.1\.weight holds NaN or inf"),
        (
            lambda c: c["state_dict"].update({"x.num_batches_tracked": c["state_dict"]["stem.bias"]}),
            r"1 unknown: x\.num_batches_tracked",
        ),
        (lambda c: c.update(optimizer=[1]), "'optimizer' holds no state by name"),
        (lambda c: c.update(global_step="7"), "'global_step' = '7' is no number"),
        (lambda c: c.update(nvae_tf={"config": "[" * 10**5}), "'nvae_tf' has 'config' .*recursion"),
        (lambda c: c.update(nvae_tf={"config": '{"data": []}'}), "'nvae_tf' has 'config' .*data is a"),
    ]
    of_this_project = [
        (lambda c: c["nvae_tf"].update(images="[" * 10**5), "'nvae_tf' has 'images' that can't be read .*recursion"),
        (lambda c: c["nvae_tf"].update(images=[1]), "'nvae_tf' has 'images' that can't be read"),
        (lambda c: c["nvae_tf"].update(origin='{"license": 4}'), "'nvae_tf' has 'origin' that can't be read"),
        (lambda c: c["nvae_tf"].update(state={"a": 1}), "'nvae_tf' has a 'state' that holds something else"),
        (lambda c: own_state(c, None, lambda t: t.long()), r"'nvae_tf' has \S*: int64 in the file, float32 in"),
        (lambda c: own_state(c, "others/17", lambda t: t), r"has others/17: \[\] in the file, no such variable"),
        (lambda c: setattr(c["args"], "num_nf", 2), r"contradict each other; 'nvae_tf' has model\.num_flows = 1"),
    ]
    for file, damages in ((trained_file, of_torch), (own_file, of_this_project)):
        for damage, message in damages:
            content = published.read(file)
            damage(content)
            with pytest.raises(ValueError, match=message):
                import_run(published.saved(content, tmp_path / "bad.pt"), tmp_path / "run")
            assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt"}


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_import_that_ends_half_way_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(*_):
        assert list(tmp_path.rglob("step-7.index"))
        raise error

    monkeypatch.setattr(importing, "write_run_config", fail)
    with pytest.raises(error if isinstance(error, type) else OSError):
        import_run(FIXTURES / "mnist_tiny.pt", tmp_path / "runs" / "mnist")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_imported_run_is_evaluated_and_generates(done, tmp_path):
    run, images = tmp_path / "run", np.random.default_rng(0).integers(0, 256, [6, 32, 32, 3], np.uint8)
    np.savez(tmp_path / "images.npz", train=images, test=images[:4])
    file = FIXTURES / "cifar10_tiny.pt"
    import_run(file, run, data_path=str(tmp_path / "images.npz"), data_source="arrays")
    done("train.evaluate", f"--workdir={run}", "--metrics=elbo", "--batch_size=2")
    done("train.generate", f"--workdir={run}", f"--output={tmp_path / 'samples.png'}", "--count=2")
    metrics = json.loads((run / "evaluation.json").read_text())
    bound = nvae_tf.from_torch_checkpoint(file).score(images[:4] / np.float32(255), seed=0)
    assert metrics["num_images"] == 4 and metrics["nelbo_nats"] == pytest.approx(np.mean(bound), rel=1e-2)
    assert (tmp_path / "samples.png").is_file()
