import math

import pytest
import tensorflow as tf

from nvae_tf import presets
from nvae_tf.layers import ForwardPass
from nvae_tf.models.nvae import NVAE
from nvae_tf.models.training_step import training_loss
from nvae_tf.presets import experiment_config
from tests.tiny_model import tiny_model

# Several settings that have nothing to do with each other in one model.
_GROUPS = dict(num_flows=2, num_groups_per_scale=3, num_cells_per_group_encoder=2, num_cells_per_group_decoder=2)
_BLOCKS = dict(image_height=8, image_width=8, num_preprocess_blocks=1, num_postprocess_blocks=1)
VARIANTS = {
    "mixture": _GROUPS | dict(likelihood="logistic_mixture", num_bits=5, image_channels=4, exact_edges=True),
    "normal": _BLOCKS | dict(likelihood="normal", num_bits=8, image_channels=2, residual_distributions=False),
    **{cells: dict(cell_set=cells) for cells in ("res_bnelu", "mbconv_sep", "res53_mbconv")},
}


def training_graph(model):
    def gradients(images):
        noise = [tf.zeros((2, *shape)) for shape in model.plan.latent_shapes()]
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            terms, _ = training_loss(model, images, noise, tf.constant(0), forward)
        return tape.gradient(terms.loss, model.trainable_weights), [value for _, value in forward.updates()]

    config = model.config
    images = tf.TensorSpec((2, config.image_height, config.image_width, config.image_channels))
    definition = tf.function(gradients, autograph=False).get_concrete_function(images).graph.as_graph_def()
    return [definition.node, *(function.node_def for function in definition.library.function)]


def test_twice_the_groups_add_no_variable_and_few_nodes():
    models = [tiny_model(num_latent_scales=1, num_groups_per_scale=groups) for groups in (3, 6)]
    # One variable a kind of layer and scale, however many groups there are.
    assert len(models[0].weights) == len(models[1].weights)
    few, many = (sum(map(len, training_graph(model))) for model in models)
    # The rest is some dozens of nodes a group: calls of functions that are there once.
    assert many < 1.35 * few
    assert (many - few) / 3 < 400


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_of_many_gradients_have_an_order(variant):
    """AddN begins with any buffer that it can write to, so three terms have three sums; slices share no pixel."""
    unordered = []
    for nodes in training_graph(tiny_model(**VARIANTS[variant])):
        producers = {node.name: node for node in nodes}
        unordered += [
            list(node.input)
            for node in nodes
            if node.op == "AddN" and len(node.input) > 2
            if any(producers[name.split(":")[0]].op != "StridedSliceGrad" for name in node.input)
        ]
    assert not unordered


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mnist", 33_363_134),
        ("cifar10", 130_852_480),
        pytest.param("imagenet32", 268_509_444, marks=pytest.mark.slow),
        pytest.param("celeba64", 153_281_364, marks=pytest.mark.slow),
        pytest.param("celebahq256", 330_798_664, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(name, count):
    # In a graph, which holds no arrays.
    with tf.Graph().as_default():
        weights = NVAE(experiment_config(presets.preset(name)).model).trainable_weights
    assert sum(math.prod(weight.shape) for weight in weights) == count
