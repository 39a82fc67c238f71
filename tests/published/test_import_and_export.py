"""Published files into run folders and back: every number at its place, nothing half-written, every fault named."""

import argparse
import copy
import csv
import dataclasses
import hashlib
import json
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig, ModelConfig, OptimizerConfig, config_to_json
from nvae_tf.models.nvae import model_for_training
from nvae_tf.published import import_run as importing
from nvae_tf.published.export_file import ExportChoices, export_file
from nvae_tf.published.import_run import ImportChoices, import_run
from nvae_tf.published.less_memory import forget_pages
from nvae_tf.published.mapping_report import write_report
from nvae_tf.published.torch_file import read_torch_checkpoint
from nvae_tf.training.checkpoints import TrainingState
from nvae_tf.training.loading import load_run
from nvae_tf.training.run_folder import RunFolder, read_run_config

pytestmark = pytest.mark.torch

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
# One of them each time, the others in the slow tests.
NAMES = ["mnist_tiny", *(pytest.param(f"{name}_tiny", marks=pytest.mark.slow) for name in ("celeba64", "cifar10"))]
NAMES += [pytest.param("normal_decoder_tiny", marks=pytest.mark.slow)]
NO_PARAMETER = ("running_mean", "running_var", "num_batches_tracked", "weight_normalized")
STEP = 7


def read(path):
    """All of a file, by torch itself."""
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def saved(content, path, **settings):
    import torch

    torch.save(content, path, **settings)
    return path


def parameters(content):
    """The parameters' names, in the order in which optimizers count them."""
    return [name for name in content["state_dict"] if not name.endswith(NO_PARAMETER)]


def with_optimizer(content, step=STEP):
    """The content with moments for each parameter but the second, as if that never had a gradient."""
    import torch

    generator = torch.Generator().manual_seed(3)
    names, state = parameters(content), {}
    for number, name in enumerate(names):
        shape = content["state_dict"][name].shape
        moments = torch.randn(shape, generator=generator), 1e-3 + torch.rand(shape, generator=generator)
        state[number] = {"step": step, "exp_avg": moments[0], "exp_inf": moments[1]}
    del state[1]
    group = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 3e-4, "params": list(range(len(names)))}
    return {**content, "optimizer": {"state": state, "param_groups": [group]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("torch")


@pytest.fixture(scope="module")
def trained_file(place):
    """A file with the optimizer's state."""
    return saved(with_optimizer(read(FIXTURES / "cifar10_tiny.pt")), place / "trained.pt")


@pytest.fixture(scope="module")
def trained_run(trained_file, place):
    import_run(ImportChoices(trained_file, place / "run", report=place / "report.csv"))
    return place / "run"


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny"])
def test_the_run_is_the_published_model(name, tmp_path):
    content = read(FIXTURES / f"{name}.pt")
    imported = import_run(ImportChoices(FIXTURES / f"{name}.pt", tmp_path / "run", license="cc-by-4.0"))
    run = load_run(tmp_path / "run")
    expected = nvae_tf.from_torch_checkpoint(FIXTURES / f"{name}.pt")
    assert run.config.model == expected.config and run.step == STEP and not imported.has_optimizer
    for weight, value in zip(run.model.weights, expected.weights, strict=True):
        if "vectors" not in weight.path:
            np.testing.assert_array_equal(weight, value, err_msg=weight.path)
    args = content["args"]
    assert run.config.optimizer.learning_rate_min == args.learning_rate_min
    assert (run.config.train.seed, run.config.train.epochs) == (args.seed, args.epochs)
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    assert origin["license"] == "cc-by-4.0" and origin["source_file"] == f"{name}.pt" and origin["step"] == STEP
    assert origin["sha256"] == hashlib.sha256((FIXTURES / f"{name}.pt").read_bytes()).hexdigest()
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"imported from `{name}.pt` (SHA-256 `{origin['sha256']}`)" in card and 'license: "cc-by-4.0"' in card


@pytest.mark.parametrize("name", NAMES)
def test_back_in_the_published_form(name, tmp_path):
    content = read(FIXTURES / f"{name}.pt")
    import_run(ImportChoices(FIXTURES / f"{name}.pt", tmp_path / "run"))
    export_file(ExportChoices(tmp_path / "run", tmp_path / "back.pt"))
    back = read(tmp_path / "back.pt")
    assert list(back["state_dict"]) == list(content["state_dict"])
    for key, value in content["state_dict"].items():
        found = back["state_dict"][key]
        assert found.dtype == value.dtype and found.shape == value.shape
        assert key.endswith("num_batches_tracked") or (found == value).all(), key
    assert set(back) == {*content, "nvae_tf"} and back["arch_instance"] == content["arch_instance"]
    assert (back["global_step"], back["scheduler"], back["grad_scalar"]) == (STEP, {}, {})
    assert vars(back["args"]) == vars(content["args"])
    import_run(ImportChoices(tmp_path / "back.pt", tmp_path / "again"))
    assert numbers(tmp_path / "again") == numbers(tmp_path / "run")
    config = "config.json"
    assert (tmp_path / "again" / config).read_text() == (tmp_path / "run" / config).read_text()


def test_moments_and_step_are_at_their_places(trained_file, trained_run):
    content, model = read(trained_file), restored(trained_run)
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


def test_the_next_step_is_that_of_torch(trained_run, tmp_path):
    """Torch's own Adamax takes the exported state, and both move by the same."""
    import torch

    export_file(ExportChoices(trained_run, tmp_path / "back.pt"))
    content, model = read(tmp_path / "back.pt"), restored(trained_run)
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


def test_the_first_step_finds_the_spectral_norms(trained_run):
    """The vectors, which the file lacks, are iterated from the start; then each step goes on with them."""
    from nvae_tf.layers import ForwardPass

    model = restored(trained_run)
    forward = ForwardPass(training=True)
    norms = np.concatenate(model.spectral_regularizer.norms(forward))
    exact = [
        np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        for stack in model.convolutions
        for kernel in stack.effective_kernels().numpy()
    ]
    np.testing.assert_allclose(norms, exact, rtol=0.02)
    assert float(model.spectral_regularizer.warmed_up.numpy()) == 0.0


def test_parameters_are_counted_in_the_order_of_the_file(trained_file, trained_run, tmp_path):
    content = read(trained_file)
    names = parameters(content)
    turned = dict(reversed(content["state_dict"].items()))
    moments = content["optimizer"]["state"]
    last = len(names) - 1
    content |= {"state_dict": turned}
    content["optimizer"]["state"] = {last - number: saved for number, saved in moments.items()}
    assert parameters(content) == names[::-1]
    import_run(ImportChoices(saved(content, tmp_path / "turned.pt"), tmp_path / "run"))
    assert numbers(tmp_path / "run") == numbers(trained_run)


@pytest.mark.parametrize("taken", [True, False])
def test_steps_that_only_the_optimizer_tells(taken, trained_file, tmp_path):
    content = read(trained_file)
    del content["global_step"]
    choices = ImportChoices(saved(content, tmp_path / "x.pt"), tmp_path / "run", with_optimizer=taken)
    imported = import_run(choices)
    assert imported.step == STEP and imported.has_optimizer == taken
    assert "7 steps in 3 epochs" in imported.assumed
    # Which are no whole number of steps each.
    export_file(ExportChoices(tmp_path / "run", tmp_path / "back.pt"))
    assert read(tmp_path / "back.pt")["epoch"] == 3
    assert int(restored(tmp_path / "run").optimizer.iterations.numpy()) == STEP


@pytest.mark.slow
def test_without_the_optimizers_state(trained_file, tmp_path):
    imported = import_run(ImportChoices(trained_file, tmp_path / "run", with_optimizer=False))
    assert not imported.has_optimizer and imported.step == STEP
    model = restored(tmp_path / "run")
    assert int(model.optimizer.iterations.numpy()) == STEP
    slots = [model.optimizer.slots_of(variable) for variable in model.trainable_variables]
    assert all(
        np.all(slot.momentum.numpy() == 0.0) and np.all(slot.norm.numpy() == np.float32(-1e-3)) for slot in slots
    )


@pytest.fixture(scope="module")
def own_run(place):
    """A run of this project after two steps, with all that only it has: running means, vectors, figures."""
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


def test_import_after_export_is_the_identity(own_run, tmp_path):
    exported = export_file(ExportChoices(own_run, tmp_path / "own.pt"))
    assert exported.leaves_means and exported.data_set == "cifar10"
    import_run(ImportChoices(tmp_path / "own.pt", tmp_path / "back"))
    assert numbers(tmp_path / "back") == numbers(own_run)
    for name in ("config.json", "images.json"):
        assert (tmp_path / "back" / name).read_text() == (own_run / name).read_text()
    moved = ImportChoices(tmp_path / "own.pt", tmp_path / "moved", data_path="/elsewhere", data_source="folder")
    data = import_run(moved).config.data
    assert (data.path, data.source) == ("/elsewhere", "folder")


@pytest.mark.slow
def test_the_state_dict_has_weights_or_their_running_means(own_run, tmp_path):
    export_file(ExportChoices(own_run, tmp_path / "weights.pt"))
    export_file(ExportChoices(own_run, tmp_path / "means.pt", running_means=True))
    reader = tf.train.load_checkpoint(str(own_run / "checkpoints" / "step-2"))
    weights = reader.get_tensor("model/bottom_up/stem/bias/.ATTRIBUTES/VARIABLE_VALUE")
    means = nvae_tf.load(own_run).bottom_up.stem.bias.numpy()
    assert np.any(weights != means)
    for name, expected in (("weights", weights), ("means", means)):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.pt")["state_dict"]["stem.bias"], expected[0])
    assert read(tmp_path / "means.pt")["optimizer"] == {}
    # A run that scores with its means scores with the same ones when it is back, from either file.
    for name in ("weights", "means"):
        import_run(ImportChoices(tmp_path / f"{name}.pt", tmp_path / name))
        np.testing.assert_array_equal(
            nvae_tf.load(tmp_path / name).top_down.image.kernel, nvae_tf.load(own_run).top_down.image.kernel
        )


def test_running_means_that_are_not_kept(trained_run, tmp_path):
    with pytest.raises(ValueError, match="keeps no running means"):
        export_file(ExportChoices(trained_run, tmp_path / "x.pt", running_means=True))


@pytest.mark.slow
def test_the_weights_alone(own_run, tmp_path):
    export_file(ExportChoices(own_run, tmp_path / "small.pt", with_optimizer=False))
    names = read(tmp_path / "small.pt")["nvae_tf"]["state"]
    assert not [name for name in names if name.startswith(("optimizer/", "others/", "metrics/"))]
    imported = import_run(ImportChoices(tmp_path / "small.pt", tmp_path / "back"))
    assert not imported.has_optimizer and imported.step == 2
    np.testing.assert_array_equal(
        nvae_tf.load(tmp_path / "back").generate(2, seed=1), nvae_tf.load(own_run).generate(2, seed=1)
    )


def test_what_the_published_form_can_not_say_is_refused(own_run, tmp_path):
    config = read_run_config(RunFolder(own_run))
    model = dataclasses.replace(config.model, exact_edges=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(own_run / "checkpoints")
    (other / "config.json").write_text(config_to_json(dataclasses.replace(config, model=model)))
    with pytest.raises(ValueError, match=r"other: the published form can't say model\.exact_edges = True"):
        export_file(ExportChoices(other, tmp_path / "x.pt"))
    assert not (tmp_path / "x.pt").exists()


def rows_of(path):
    with path.open(newline="") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def test_no_message_names_a_hidden_file(trained_run, tmp_path, monkeypatch):
    def fail(path, target):
        raise OSError(28, "No space left on device", str(path), None, str(target))

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match=r"/report\.csv: can't be written \(No space left on device\)$"):
        write_report(tmp_path / "report.csv", [])
    with pytest.raises(
        OSError, match=r"/x\.pt: could not be written, .* left on its disk \(No space left on device\)\."
    ):
        export_file(ExportChoices(trained_run, tmp_path / "x.pt"))
    assert not list(tmp_path.iterdir())


def test_the_report_has_every_tensor(trained_file, trained_run, place):
    content, rows = read(trained_file), rows_of(place / "report.csv")
    moments = {
        f"optimizer.{number}.{name}"
        for number, state in content["optimizer"]["state"].items()
        for name in ("exp_avg", "exp_inf")
    }
    assert set(rows) == set(content["state_dict"]) | moments
    row = rows["enc_sampler.2.weight"]
    assert (row["shape"], row["dtype"], row["index"]) == ("8x16x3x3", "float32", "2")
    assert (row["target"], row["target_shape"]) == ("top_down/scales/0/posteriors/kernel", "3x3x3x16x8")
    assert rows["optimizer.0.exp_avg"]["target"] == "momentum of top_down/start"
    ignored = {name for name, row in rows.items() if row["note"].startswith("ignored")}
    assert ignored == {name for name in content["state_dict"] if name.endswith(NO_PARAMETER[2:])}
    assert all(row["target"] or row["note"] for row in rows.values())


def test_faults_are_named_and_reported_and_nothing_is_written(tmp_path):
    content = read(FIXTURES / "mnist_tiny.pt")
    state = content["state_dict"]
    del state["stem.bias"]
    state["enc0.1.bias"] = state["enc0.1.bias"][:3]
    state["other"] = state["stem.weight"]
    choices = ImportChoices(saved(content, tmp_path / "bad.pt"), tmp_path / "run", report=tmp_path / "report.csv")
    with pytest.raises(ValueError, match=r"bad\.pt: .* missing: stem\.bias; .*: enc0\.1\.bias .*; 1 unknown: other"):
        import_run(choices)
    rows = rows_of(choices.report)
    assert rows["stem.bias"]["note"] == "missing" and rows["other"]["note"] == "unknown"
    assert "needs" in rows["enc0.1.bias"]["note"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt", "report.csv"}


def test_a_far_larger_model_is_refused_and_reported_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "model_for_training", lambda *_, **__: pytest.fail("the model is made"))
    content = read(FIXTURES / "mnist_tiny.pt")
    content["args"].num_channels_dec = 4096
    choices = ImportChoices(saved(content, tmp_path / "bad.pt"), tmp_path / "run", report=tmp_path / "report.csv")
    with pytest.raises(ValueError, match=r"bad\.pt: the published weights do not fit .* has at least [\d,]+ numbers"):
        import_run(choices)
    assert "a larger model" in rows_of(choices.report)["stem.bias"]["note"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt", "report.csv"}


def test_a_deflated_archive_becomes_the_same_run(trained_file, trained_run, tmp_path):
    with (
        zipfile.ZipFile(trained_file) as stored,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    import_run(ImportChoices(tmp_path / "x.pt", tmp_path / "run"))
    assert numbers(tmp_path / "run") == numbers(trained_run)


def test_the_report_tells_why_moments_are_left_out(trained_file, own_run, tmp_path):
    report = tmp_path / "left_out.csv"
    import_run(ImportChoices(trained_file, tmp_path / "run", with_optimizer=False, report=report))
    row = rows_of(report)["optimizer.3.exp_avg"]
    assert (row["target"], row["note"]) == ("", "ignored: --without_optimizer")
    export_file(ExportChoices(own_run, tmp_path / "own.pt"))
    import_run(ImportChoices(tmp_path / "own.pt", tmp_path / "back", report=tmp_path / "own.csv"))
    rows = rows_of(tmp_path / "own.csv")
    assert rows["optimizer.3.exp_avg"]["target"].startswith("momentum of ")
    assert rows["optimizer.3.exp_inf"]["note"].startswith("ignored: nvae_tf.optimizer has it")


def without_second_norm(content):
    content["optimizer"]["state"][5]["exp_inf"] = None


def misshapen(content):
    content["optimizer"]["state"][0]["exp_avg"] = content["optimizer"]["state"][0]["exp_avg"][:1]


def one_too_few(content):
    content["optimizer"]["param_groups"][0]["params"].pop()


def with_group(**settings):
    """Damage to the settings of the optimizer's only group."""
    return lambda content: content["optimizer"]["param_groups"][0].update(settings)


def two_groups(content):
    (group,) = content["optimizer"]["param_groups"]
    first, second = group["params"][:9], group["params"][9:]
    content["optimizer"]["param_groups"] = [{**group, "params": first}, {**group, "params": second}]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_second_norm, r"parameter 5, .*has no exp_inf.*--without_optimizer"),
        (misshapen, r"parameter 0, prior_ftr0, has exp_avg of shape \(1, .*--without_optimizer"),
        (
            lambda content: content["optimizer"]["state"][0].update(
                exp_avg=content["optimizer"]["state"][0]["exp_avg"].long()
            ),
            "parameter 0, prior_ftr0, has exp_avg of type int64, and not of floats; .*--without_optimizer",
        ),
        (one_too_few, r"is that of 225 parameters, and the model has 226.*--without_optimizer"),
        (lambda content: content["optimizer"].pop("param_groups"), "param_groups"),
        (two_groups, "has 2 param_groups, and not one; .*--without_optimizer"),
        (with_group(betas=(0.9, 0.99)), r"was made with betas = \(0\.9, 0\.99\), .* \(0\.9, 0\.999\); .*--without_opt"),
        (with_group(eps=1e-8), r"was made with eps = 1e-08, and .* 0\.001; .*--without_optimizer"),
        (with_group(betas=None), "was made with betas = None"),
        (with_group(params=None), "params that are no list of numbers; .*--without_optimizer"),
        (with_group(params=[[number] for number in range(226)]), "params that are no list of numbers"),
        (with_group(params=[0] * 226), "params that name a parameter twice"),
        (lambda content: content["optimizer"]["state"][3].pop("step"), "parameter 3 does not tell its step"),
        (
            lambda content: content["optimizer"]["state"][3].update(step=float("inf")),
            "parameter 3 does not tell its step",
        ),
        (
            lambda content: content["optimizer"]["state"][0]["exp_inf"].view(-1)[1:2].fill_(float("nan")),
            "the optimizer's exp_inf of prior_ftr0 holds NaN or infinity; .*--without_optimizer",
        ),
        (
            lambda content: content["state_dict"]["enc0.1.weight"].view(-1)[1:2].fill_(float("inf")),
            r"bad\.pt: enc0\.1\.weight holds NaN or infinity; .* before its training diverged",
        ),
        (
            lambda content: content["optimizer"]["state"].update({226: content["optimizer"]["state"][3]}),
            "is of parameter 226, which its params lack; .*--without_optimizer",
        ),
        (lambda content: content["optimizer"].update(state=[1]), "no mapping from parameters to their moments"),
        (lambda content: setattr(content["args"], "num_x_bits", "8"), "'args' has a setting of a wrong type"),
        (
            lambda content: content["state_dict"].update({"x.num_batches_tracked": content["state_dict"]["stem.bias"]}),
            r"1 unknown: x\.num_batches_tracked",
        ),
        (lambda content: content.update(optimizer=[1]), "'optimizer' holds no state by name"),
        (lambda content: content.update(global_step="7"), "'global_step' = '7' is no number"),
        (lambda content: content.update(nvae_tf={"config": "{"}), "'nvae_tf' has no settings that can be read"),
        (lambda content: content.update(nvae_tf={"config": "[" * 10**5}), "'nvae_tf' has no settings .*recursion"),
        (lambda content: content.update(nvae_tf={"config": "[]"}), "'nvae_tf' has no settings that can be read"),
        (lambda content: content.update(nvae_tf={"config": '{"data": []}'}), "'nvae_tf' has no settings .*data is a"),
    ],
)
def test_a_state_of_another_form_is_told(damage, message, trained_file, tmp_path):
    content = read(trained_file)
    damage(content)
    with pytest.raises(ValueError, match=message):
        import_run(ImportChoices(saved(content, tmp_path / "bad.pt"), tmp_path / "run", data_path="images"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt"}


@pytest.mark.slow
def test_settings_that_contradict_each_other(own_run, tmp_path):
    export_file(ExportChoices(own_run, tmp_path / "own.pt"))
    content = read(tmp_path / "own.pt")
    changed = copy.deepcopy(content)
    changed["args"].num_nf = 2
    with pytest.raises(ValueError, match=r"contradict each other; 'nvae_tf' has model\.num_flows = 1"):
        import_run(ImportChoices(saved(changed, tmp_path / "bad.pt"), tmp_path / "run"))
    changed = copy.deepcopy(content)
    changed["nvae_tf"]["images"] = "[" * 10**5
    with pytest.raises(ValueError, match="'nvae_tf' has 'images' that can't be read .*recursion"):
        import_run(ImportChoices(saved(changed, tmp_path / "bad.pt"), tmp_path / "run"))
    name, value = next(iter(content["nvae_tf"]["state"].items()))
    changed = copy.deepcopy(content)
    changed["nvae_tf"]["state"][name] = value.long()
    with pytest.raises(ValueError, match=f"'nvae_tf' has {name}: int64 in the file, float32 in this run's model"):
        import_run(ImportChoices(saved(changed, tmp_path / "bad.pt"), tmp_path / "run"))
    content["nvae_tf"]["state"]["others/17"] = content["nvae_tf"]["state"]["others/0"]
    with pytest.raises(ValueError, match=r"'nvae_tf' has others/17: \[\] in the file, no such variable"):
        import_run(ImportChoices(saved(content, tmp_path / "bad.pt"), tmp_path / "run"))


def test_an_old_file_without_some_settings_and_without_steps(tmp_path):
    content = read(FIXTURES / "normal_decoder_tiny.pt")
    for name in ("ada_groups", "min_groups_per_scale", "warmup_epochs"):
        delattr(content["args"], name)
    for key in ("optimizer", "epoch", "global_step"):
        del content[key]
    path = saved(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not read_torch_checkpoint(path).is_mapped
    imported = import_run(ImportChoices(path, tmp_path / "run"))
    assert (imported.step, imported.defaults) == (0, ("optimizer.warmup_epochs",))
    expected = nvae_tf.from_torch_checkpoint(FIXTURES / "normal_decoder_tiny.pt")
    np.testing.assert_array_equal(nvae_tf.load(tmp_path / "run").generate(2, seed=1), expected.generate(2, seed=1))


def test_only_pages_of_files_are_let_go(tmp_path):
    own = np.ones([1 << 16])
    forget_pages(own)
    forget_pages(own.reshape(256, 256)[:128])
    np.testing.assert_array_equal(own, 1.0)
    own.tofile(tmp_path / "x.bin")
    mapped = np.memmap(tmp_path / "x.bin", mode="c")
    forget_pages(mapped)
    assert mapped.tobytes() == own.tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_import_that_ends_half_way_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(*_):
        assert list(tmp_path.rglob("step-7.index"))
        raise error

    monkeypatch.setattr(importing, "config_to_json", fail)
    with pytest.raises(error if isinstance(error, type) else OSError):
        import_run(ImportChoices(FIXTURES / "mnist_tiny.pt", tmp_path / "runs" / "mnist"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_published_file_is_not_changed_by_its_import(trained_file, trained_run, place, tmp_path):
    # Its pages are given back while it is read; a second look finds the same.
    before = trained_file.read_bytes()
    import_run(ImportChoices(trained_file, tmp_path / "run"))
    assert trained_file.read_bytes() == before and numbers(tmp_path / "run") == numbers(trained_run)
