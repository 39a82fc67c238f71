"""Nothing in a training step adds in an order that may differ from run to run."""

import pytest
import tensorflow as tf

from nvae_tf.layers import ForwardPass

VARIANTS = {
    "bernoulli": {},
    "logistic mixture": {"likelihood": "logistic_mixture", "num_bits": 8, "image_channels": 3},
    "exact edges": {"likelihood": "logistic_mixture", "num_bits": 5, "image_channels": 4, "exact_edges": True},
    "normal": {"likelihood": "normal", "num_bits": 8, "image_channels": 2},
    "flows": {"num_flows": 2},
    "no residual distributions": {"residual_distributions": False},
    "more cells": {"num_groups_per_scale": 3, "num_cells_per_group_encoder": 2, "num_cells_per_group_decoder": 2},
    "blocks": {"image_height": 8, "image_width": 8, "num_preprocess_blocks": 1, "num_postprocess_blocks": 1},
    "one group": {"num_latent_scales": 1},
    **{cells: {"cell_set": cells} for cells in ("res_bnswish", "res_bnelu", "mbconv_sep", "res53_mbconv")},
}


def nodes_of(definition):
    """All nodes of a graph and of the functions in it, and the producer of each by its name."""
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        producers = {node.name: node for node in nodes}
        for node in nodes:
            yield node, producers


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_of_many_gradients_have_an_order(variant, tiny):
    """AddN begins with any buffer that it can write to, so three terms have three sums.

    Gradients of slices that share no pixel are allowed: all but one of the terms are zero everywhere.
    """
    model = tiny.model(**VARIANTS[variant])
    config = model.config
    shape = (2, config.image_height, config.image_width, config.image_channels)

    def gradients(images):
        noise = [tf.zeros((2, *shape)) for shape in model.plan.latent_shapes()]
        with tf.GradientTape() as tape:
            _, loss, _ = model.training_loss(images, noise, tf.constant(0), ForwardPass(training=True))
        return tape.gradient(loss.loss, model.trainable_weights)

    traced = tf.function(gradients, autograph=False).get_concrete_function(tf.TensorSpec(shape))
    unordered = [
        list(node.input)
        for node, producers in nodes_of(traced.graph.as_graph_def())
        if node.op == "AddN" and len(node.input) > 2
        if any(producers[name.split(":")[0]].op != "StridedSliceGrad" for name in node.input)
    ]
    assert not unordered
