import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import ForwardPass
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


@pytest.mark.slow
def test_what_goes_in_comes_out(model, state, published):
    load_published_weights(model, state)
    actual = published.state_of(model)
    assert actual.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)


def test_the_layout(model, state):
    """One layer of each kind, computed from the published tensors by hand."""
    load_published_weights(model, state)
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    weight, scale = state["stem.weight"], np.exp(state["stem.log_weight_norm"])
    assert weight.shape == (8, 1, 3, 3) and scale.shape == (8, 1, 1, 1)
    length = np.sqrt(np.sum(weight**2, axis=(1, 2, 3), keepdims=True))
    kernel = (scale * weight / (length + 1e-5)).transpose(2, 3, 1, 0)
    expected = tf.nn.conv2d(images, kernel.astype(np.float32), 1, "SAME") + state["stem.bias"]
    actual = model.bottom_up.stem.single(images, ForwardPass())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert state["prior_ftr0"].shape == (32, 2, 2)
    np.testing.assert_allclose(model.top_down.start, state["prior_ftr0"].transpose(1, 2, 0), rtol=1e-6)
    gate = model.bottom_up.preprocess[0].cells.gate
    features = np.random.default_rng(1).normal(size=(2, 3, 3, 8)).astype(np.float32)
    dense = [state[f"pre_process.0.se.se.{part}"] for part in ("0.weight", "0.bias", "2.weight", "2.bias")]
    hidden = np.maximum(features.mean(axis=(1, 2)) @ dense[0].T + dense[1], 0.0)
    expected = 1.0 / (1.0 + np.exp(-(hidden @ dense[2].T + dense[3])))
    np.testing.assert_allclose(gate.single(features, ForwardPass())[:, 0, 0], expected, rtol=1e-4)


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
    # Both at once are one too many; of many faults some are named.
    name = next(name for name in longer if name not in state)
    with pytest.raises(ValueError, match="1 unknown: "):
        load_published_weights(model, {**state, name: longer[name]})
    with pytest.raises(ValueError, match=r"\d+ missing: prior_ftr0, stem.weight, .* \.\.\."):
        load_published_weights(model, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enc_sampler.3.bias": None, "prior_ftr0": None}, "2 missing: prior_ftr0, enc_sampler.3.bias"),
        # The right number of values in this project's own layout.
        ({"stem.weight": np.zeros((3, 3, 1, 8))}, r"stem.weight has shape \(3, 3, 1, 8\), not \(8, 1, 3, 3\)"),
        ({"stem.bias": np.float32(0.0)}, r"1 of another shape: stem.bias has shape \(\), not \(8,\)"),
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
