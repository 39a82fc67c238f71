import dataclasses
import sys

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig
from nvae_tf.layers import ForwardPass
from nvae_tf.models.latents import batch_noise
from nvae_tf.models.training_step import training_loss
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.runs.checkpoints import TrainingState, named_weights
from nvae_tf.runs.run_folder import open_for_training
from nvae_tf.training.run import initialize
from tests.tiny_model import assert_same, tiny_config

MODEL = tiny_config(num_flows=1)


def values(model):
    return {name: weight.numpy() for name, weight in named_weights(model).items()}


def assert_taken(model, source, names):
    assert names
    actual, expected = values(model), values(source)
    for name in names:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def compiled(config, seed, **optimizer_settings):
    tf.random.set_seed(seed)
    model = nvae_tf.NVAE(config)
    optimizer = NVAEAdamax(**optimizer_settings)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer)
    return model


def saved_run(path, config):
    """A run folder of a model whose weights are no new model's, and that model."""
    model = compiled(config, seed=1)
    random = np.random.RandomState(1)
    for variable in [*model.weights, *model.optimizer.variables[1:]]:
        variable.assign(random.uniform(0.1, 1.0, variable.shape))
    folder = open_for_training(path, ExperimentConfig(model=config))
    TrainingState(folder.checkpoints, model, model.optimizer, 1).save(1234)
    return str(folder.path), model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("runs") / "source", MODEL)


def loss_of(model, images):
    noise = batch_noise(model.plan.latent_shapes(), len(images), (5, 0))
    return training_loss(model, images, noise, tf.constant(0), ForwardPass(training=True))[0].loss.numpy()


@pytest.mark.slow
def test_an_equal_architecture_is_taken_whole(run):
    path, source = run
    model = compiled(MODEL, seed=2)
    slots = [variable.numpy() for variable in model.optimizer.variables]
    images = tf.cast(np.random.RandomState(3).uniform(size=(6, 4, 4, 1)) > 0.5, tf.float32)
    expected = loss_of(source, images)
    assert loss_of(model, images) != expected
    taken, report = initialize(model, path)
    assert report == f"Starts from {path}, step 1,234: all {len(taken)} weights taken."
    assert_taken(model, source, named_weights(source).keys() - {"data_initialised"})
    assert loss_of(model, images) == expected
    assert_same(model.optimizer.variables, slots)


@pytest.mark.slow
def test_another_likelihood_changes_the_last_layer_only(run):
    path, source = run
    config = dataclasses.replace(MODEL, num_bits=8, likelihood="logistic_mixture", num_mixtures=3)
    model = compiled(config, seed=2)
    before = model.top_down.image.kernel.numpy()
    taken, report = initialize(model, path)
    first, heading, *misshapen = report.splitlines()
    assert f": {len(taken)} of {len(taken) + len(misshapen)} weights taken." in first
    assert heading == f"Not taken, because of another shape in the source: {len(misshapen)}"
    assert all(line.startswith("  top_down/image/") for line in misshapen)
    assert_taken(model, source, taken)
    np.testing.assert_array_equal(model.top_down.image.kernel.numpy(), before)
    # New kernels need the long power iteration of a model's first step.
    assert float(model.spectral_regularizer.warmed_up.numpy()) == 0.0
    # Nor are stacks of another count taken in part.
    taken, report = initialize(compiled(dataclasses.replace(MODEL, num_groups_per_scale=2), seed=2), path)
    name = "top_down/scales/0/posteriors/kernel"
    assert name not in taken and f"\n  {name}: [1, 3, 3, 4, 4] in the source, [2, 3, 3, 4, 4] here\n" in report


@pytest.mark.slow
def test_power_vectors_go_with_their_kernels(run):
    path, source = run
    # Without flows, all kernels behind them have other numbers.
    model = compiled(dataclasses.replace(MODEL, num_flows=0), seed=2)
    _, heading, *unused = initialize(model, path)[1].splitlines()
    assert heading == f"Not used of the source, because this model has no such weights: {len(unused)}"
    assert unused and all("/flows/" in name for name in unused)
    pairs = zip(source.convolutions, source.spectral_regularizer.vectors, strict=True)
    kernel_vectors = {id(layer.kernel): vector for layer, vector in pairs}
    shifted = 0
    for index, (layer, vector) in enumerate(zip(model.convolutions, model.spectral_regularizer.vectors, strict=True)):
        name = next(name for name, weight in named_weights(model).items() if weight is layer.kernel)
        expected = kernel_vectors[id(named_weights(source)[name])]
        shifted += expected is not source.spectral_regularizer.vectors[index]
        np.testing.assert_array_equal(vector.numpy(), expected.numpy(), err_msg=name)
    assert shifted
    assert model.spectral_regularizer.warmed_up.numpy() == source.spectral_regularizer.warmed_up.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("source_cells", "kept"), [("res_elu", True), ("res_bnelu", False)])
def test_the_first_batch_sets_scales_unless_trained_ones_were_taken(tmp_path, source_cells, kept):
    path, source = saved_run(tmp_path / "source", tiny_config(cell_set=source_cells, num_channels_encoder=4))
    assert source.is_data_dependent is kept
    # Other cells have other names or, without batch norm, other channels.
    model = compiled(tiny_config(cell_set="res_elu", num_channels_encoder=4), seed=2)
    assert model.is_data_dependent
    initialize(model, path)
    assert bool(model.data_initialised.numpy() > 0.0) is kept


@pytest.mark.slow
def test_a_source_of_which_nothing_fits_is_refused_and_nothing_assigned(tmp_path):
    path, _ = saved_run(tmp_path / "small", tiny_config(squeeze_excite=False))
    other = dict(num_latent_per_group=3, num_channels_encoder=20, num_channels_decoder=20, squeeze_excite=False)
    model = compiled(dataclasses.replace(MODEL, num_bits=8, likelihood="normal", num_groups_per_scale=2, **other), 2)
    before = values(model)
    message = (
        rf"{path}.*none of its \d+ weights fits one of the \d+ .* model.num_groups_per_scale is 1 there and 2 here"
    )
    with pytest.raises(ValueError, match=message):
        initialize(model, path)
    assert_same(values(model), before)


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("notes.txt", FileNotFoundError, "notes.txt': no such folder or published file; give the --workdir"),
        ("new", ValueError, "train.initialize_from: .*new: no checkpoint"),
    ],
)
def test_a_wrong_source_is_named(run, tmp_path, place, kind, message):
    (tmp_path / "notes.txt").write_text("years of work")
    open_for_training(tmp_path / "new", ExperimentConfig(model=MODEL))
    with pytest.raises(kind, match=message):
        initialize(run[1], str(tmp_path / place))


@pytest.mark.slow
@pytest.mark.torch
def test_a_published_file_is_taken_whole_where_torch_is(published, monkeypatch):
    path = str(published.path("normal_decoder_tiny.pt"))
    source = nvae_tf.from_torch_checkpoint(path)
    model = compiled(source.config, seed=2)
    taken, report = initialize(model, path)
    assert report == f"Starts from {path}: all {len(taken)} weights taken."
    assert_same(published.state_of(model), published.state_of(source))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"train\.initialize_from: .*need PyTorch: pip install"):
        initialize(model, path)
