import collections

import numpy as np
import pytest

from nvae_tf.latent_plan import CELL_SETS, fewest_weights
from nvae_tf.published.settings import model_config_from_published
from nvae_tf.published.tensor_names import load_published_weights, published_shape, published_tensors
from nvae_tf.published.torch_file import read_torch_checkpoint
from tests import refuses, slow_but
from tests.tiny_model import assert_same, values

PLAIN = dict(squeeze_excite=False, num_flows=0)
ONE_SCALE = dict(num_latent_scales=1, **PLAIN)


RECORDED = ("mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny")


@pytest.mark.torch
@pytest.mark.parametrize("name", slow_but("normal_decoder_tiny", of=RECORDED))
def test_the_order_of_the_recorded_files(name, published):
    """With all entries that carry nothing: optimizers count parameters by it."""
    settings, _ = published.recorded(name)
    model = published.without_arrays(model_config_from_published(settings))
    names = [(tensor.names[0], tensor.companion) for tensor in published_tensors(model)]
    entries = [entry for pair in names for entry in pair if entry is not None]
    assert entries == list(read_torch_checkpoint(published.path(f"{name}.pt")).state)


# One scale has every kind of cell that changes the names: normal, down and up.
VARIANTS = [dict(cell_set=name, **ONE_SCALE) for name in CELL_SETS if ":" not in name] + [  # none that tests register
    dict(num_latent_scales=1, num_groups_per_scale=1, num_flows=2),
    dict(num_latent_scales=3, num_groups_per_scale=4, adaptive_groups=True, num_cells_per_group_decoder=2, **PLAIN),
    dict(num_bits=8, likelihood="logistic_mixture", image_channels=3, num_mixtures=7, num_flows=3),
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ", ".join(map(str, changes.values())))
def test_every_weight_has_one_name(changes, published, monkeypatch):
    config = published.config(**changes)
    model = published.without_arrays(config)
    tensors = list(published_tensors(model))
    names = [name for tensor in tensors for name in tensor.names]
    assert [name for name, count in collections.Counter(names).items() if count > 1] == []
    # Every place of every variable of the network is filled once; what is not published is known by name.
    places = collections.Counter((id(tensor.variable), tensor.index) for tensor in tensors)
    assert set(places.values()) == {1}
    published_variables = {id(tensor.variable) for tensor in tensors}
    others = {variable.name for variable in model.weights if id(variable) not in published_variables}
    assert {name.split("_")[0] for name in others} <= {"vectors", "warmed", "data", "total", "count"}
    for variable in model.weights:
        if id(variable) in published_variables and (id(variable), None) not in places:
            filled = [index for place, index in places if place == id(variable)]
            assert sorted(filled) == list(range(variable.shape[0]))
    # A model is never smaller than the lower bounds that files and limits are compared with.
    numbers = sum(int(np.prod(published_shape(tensor))) for tensor in tensors)
    monkeypatch.setattr("nvae_tf.latent_plan.MOST_LAYERS", len(tensors))
    assert numbers / 8 < fewest_weights(config) <= numbers


@pytest.mark.slow
def test_normal_and_down_cells_of_operations(published):
    parts = dict.fromkeys(("res_bnswish", "res55_mbconv"), ("bn_act", "conv_0"))
    for cell_set, names in (parts | {"res_bnelu": ("bn", "bn.bn", "conv_0"), "res_elu": ("conv_0",)}).items():
        tensors = published_tensors(published.without_arrays(published.config(cell_set=cell_set, **ONE_SCALE)))
        layers = {name.rpartition(".")[0] for tensor in tensors for name in tensor.names}
        branch = {f"_ops.{number}.{name}" for number in (0, 1) for name in names}
        for cell, skip in ((0, set()), (1, {f"skip.conv_{number}" for number in (1, 2, 3, 4)})):
            start = f"pre_process.{cell}."
            assert {layer.removeprefix(start) for layer in layers if layer.startswith(start)} == branch | skip


def test_the_encoder_tower_is_counted_through(published):
    """Two scales of two groups, two cells a group, which no recorded file has: one running count."""
    others = dict(num_preprocess_blocks=0, num_postprocess_blocks=0, **PLAIN)
    model = published.without_arrays(published.config(num_cells_per_group_encoder=2, **others))
    kinds = {}
    for tensor in published_tensors(model):
        parts = tensor.names[-1].split(".")
        if parts[0] == "enc_tower":
            kind = {"conv": "combiner", "skip": "skip"}.get(parts[2], "cell")
            kinds.setdefault(int(parts[1]), set()).add(kind)
    assert ["+".join(sorted(kinds[number])) for number in sorted(kinds)] == [
        *("cell", "cell", "combiner", "cell", "cell", "combiner", "cell+skip"),
        *("cell", "cell", "combiner", "cell", "cell"),  # the top-most group has no combiner
    ]


@pytest.fixture(scope="module")
def model(published):
    return published.model()


@pytest.fixture(scope="module")
def state(published, model):
    return published.random_state(model)


@pytest.mark.parametrize("cell_set", slow_but("res_bnelu", of=["res_mbconv", "res_bnelu"]))
def test_both_forms_of_the_names_of_norms(cell_set, published):
    model = published.model(cell_set=cell_set)
    state = published.random_state(model)
    # Under the longer form of those names that have one.
    names = {tensor.names[-1]: tensor.names[0] for tensor in published_tensors(model)}
    longer = {names[name]: value for name, value in state.items()}
    assert set(longer) != set(state)
    load_published_weights(model, state)
    expected = values(model.weights)
    load_published_weights(model, {name: 0.0 * value for name, value in state.items()})
    layer = next(name for name in longer if name.endswith(".running_var")).rpartition(".")[0]
    load_published_weights(model, longer | {f"{layer}.num_batches_tracked": np.array(7)})
    assert_same(model.weights, expected)
    # Both at once are one too many.
    name = next(name for name in longer if name not in state)
    refuses("1 unknown: ", load_published_weights, model, {**state, name: longer[name]})


def test_all_or_nothing(model, state):
    load_published_weights(model, state)
    before = values(model.weights)
    for changes, message in (
        # The right number of values in this project's own layout.
        ({"stem.weight": np.zeros((3, 3, 1, 8))}, r"stem.weight has shape \(3, 3, 1, 8\), not \(8, 1, 3, 3\)"),
        ({"stem.bias": None, "other": np.zeros(1)}, "1 missing: stem.bias; 1 unknown: other"),
        ({"enc0.1.bias": np.full(32, np.nan)}, "enc0.1.bias holds NaN or inf"),
        # Too large for float32, the type of the model's weights.
        ({"enc0.1.bias": np.full(32, 1e39)}, "enc0.1.bias holds NaN or inf"),
    ):
        changed = {name: 2.0 * value for name, value in state.items()} | changes
        with pytest.raises(ValueError, match=message):
            load_published_weights(model, {name: value for name, value in changed.items() if value is not None})
        assert_same(model.weights, before)


@pytest.mark.slow
def test_loaded_self_normalizing_layers_are_not_set_again(published):
    """A later training step must not take its scales from its batch: that would undo the loaded ones."""
    model = published.model(cell_set="res_elu", num_latent_scales=1)
    assert float(model.data_initialised) == 0.0
    load_published_weights(model, published.random_state(model))
    assert float(model.data_initialised) == 1.0
