import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.optimization import NVAEAdamax
from nvae_tf.published.names import published_tensors
from nvae_tf.published.weights import load_published_weights
from tests.tiny_model import assert_same, values


@pytest.fixture(scope="module")
def model(published):
    return published.model()


@pytest.fixture(scope="module")
def state(published, model):
    return published.random_state(model)


@pytest.mark.parametrize("cell_set", ["res_mbconv", "res_bnelu"])
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
    with pytest.raises(ValueError, match="1 unknown: "):
        load_published_weights(model, {**state, name: longer[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # The right number of values in this project's own layout.
        ({"stem.weight": np.zeros((3, 3, 1, 8))}, r"stem.weight has shape \(3, 3, 1, 8\), not \(8, 1, 3, 3\)"),
        ({"stem.bias": None, "other": np.zeros(1)}, "1 missing: stem.bias; 1 unknown: other"),
        ({"enc0.1.bias": np.full(32, np.nan)}, "enc0.1.bias holds NaN or inf"),
        # Too large for float32, the type of the model's weights.
        ({"enc0.1.bias": np.full(32, 1e39)}, "enc0.1.bias holds NaN or inf"),
    ],
)
def test_all_or_nothing(changes, message, model, state):
    load_published_weights(model, state)
    before = values(model.weights)
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
    before = published.state_of(model)
    model.compile(optimizer=NVAEAdamax(0.0))
    model.train_step(tf.constant(np.random.default_rng(0).integers(0, 2, (4, 8, 8, 1)), tf.float32))
    after = published.state_of(model)
    for name, value in before.items():
        if not name.endswith(("running_mean", "running_var")):
            np.testing.assert_array_equal(after[name], value, err_msg=name)
