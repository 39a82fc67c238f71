import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from nvae_tf import presets
from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.layers import ForwardPass, cpu_kernels
from nvae_tf.models.nvae import NVAE
from nvae_tf.models.passes import inference_pass
from nvae_tf.models.training_step import loss_terms
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.presets import experiment_config
from nvae_tf.runs.loading import model_for_training
from nvae_tf.training.strategy import step_function
from tests import slow_but
from tests.tiny_model import PADDED, images_of, shaken, tiny_config, tiny_model, values

pytestmark = pytest.mark.usefixtures("few_power_iterations")
PLAIN = dict(padded_height=None, padded_width=None, image_height=4, image_width=4)
COLOR = dict(**PLAIN, image_channels=3, likelihood="logistic_mixture", num_mixtures=2)
# Settings that have nothing to do with each other share a model: each costs two seconds. The cells of all sets are
# tested in tests/layers; those named here differ in what a model does with them.
VARIANTS = {
    "logistic mixture, exact edges; no squeeze-excite, larger branches; narrow encoder": COLOR
    | dict(num_bits=5, exact_edges=True, squeeze_excite=False, residual_scale=0.3)
    | dict(num_channels_encoder=2, num_channels_decoder=6),
    "normal; absolute posteriors; narrow decoder; self-normalizing": COLOR
    | dict(likelihood="normal", num_bits=8, residual_distributions=False)
    | dict(num_channels_encoder=6, num_channels_decoder=2, cell_set="res_elu"),
    "adaptive groups; two flows": dict(
        num_latent_scales=3, num_groups_per_scale=2, adaptive_groups=True, min_groups_per_scale=1, num_flows=2
    ),
    "blocks and cells": dict(
        **dict(num_preprocess_blocks=2, num_preprocess_cells=2, num_cells_per_group_encoder=2),
        **dict(num_postprocess_blocks=2, num_postprocess_cells=1, num_cells_per_group_decoder=2),
    ),
    "oblong; dilated; single channels": PLAIN
    | dict(image_width=6, cell_set="res53_mbconv", num_channels_encoder=1, num_channels_decoder=1),
    "one group with flows; dense": dict(num_latent_scales=1, num_flows=1, cell_set="mbconv_den")
    | dict(num_preprocess_blocks=1, num_postprocess_blocks=1, num_channels_encoder=8, num_channels_decoder=8),
}


# Whether a model can be built and named at all is seen in tests/published/test_tensor_names.py, too.
QUICK = "oblong; dilated; single channels"


@pytest.mark.parametrize("variant", slow_but(QUICK, of=VARIANTS))
def test_a_variant_trains_scores_and_generates(variant):
    model = tiny_model(NVAEAdamax(1e-3, l2=0.0), **PADDED | VARIANTS[variant])
    images = images_of(model.config, count=3)
    before = values(model.trainable_weights)
    report = model.train_step(tf.constant(images))
    assert set(report) == {"loss", "reconstruction", "kl", "gradient_norm", "skipped_steps"}
    assert all(np.isfinite(value) for value in report.values())
    assert all(np.all(np.isfinite(weight)) for weight in model.weights)
    # Every kernel has its part in the loss; a bias right before a batch norm has none.
    for weight, value in zip(model.trainable_weights, before, strict=True):
        assert weight.name not in ("kernel", "gamma", "start") or not value.size or np.any(weight.numpy() != value)
    assert np.all(np.isfinite(model.score(images)))
    generated = model.generate(2)
    assert tuple(generated.shape) == (2, *images.shape[1:])
    assert np.min(generated) >= 0.0 and np.max(generated) <= 1.0
    assert [tuple(latent.shape[1:]) for latent in model.encode(images)] == list(model.plan.latent_shapes())


def test_posteriors_are_relative_to_the_prior_or_absolute():
    relative, absolute = (shaken(tiny_model(residual_distributions=residual, seed=0)) for residual in (True, False))
    noise = [tf.zeros((4, *shape)) for shape in relative.plan.latent_shapes()]
    # The prior of the top group is zeros, so that the other group has the same state.
    images = images_of(relative.config)
    (_, one), (_, other) = (inference_pass(model, images, noise).latents for model in (relative, absolute))
    prior, posterior, alone = (np.arctanh(normal.loc / 5.0) for normal in (one.prior, one.posterior, other.posterior))
    np.testing.assert_allclose(posterior, prior + alone, rtol=1e-4, atol=1e-5)
    assert np.abs(prior).max() > 1e-3


def test_models_learn_their_start_but_that_of_one_group_leaves_it_alone():
    """It has the learned start of the published file, but neither gradient nor decay reaches it."""
    model = tiny_model(**PADDED)
    assert tuple(model.top_down.start.shape) == (4, 4, 4)
    assert any(model.top_down.start is weight for weight in model.trainable_weights)
    model = tiny_model(NVAEAdamax(0.1, l2=0.5), num_latent_scales=1)
    start = model.top_down.start
    before = start.numpy()
    assert np.all((before >= 0.0) & (before < 1.0)) and np.std(before) > 0.1
    model.train_step(tf.constant(images_of(model.config)))
    np.testing.assert_array_equal(start, before)
    assert any(start is weight for weight in model.non_trainable_weights)


# Several settings that have nothing to do with each other in one model.
GRAPHS = {
    "mixture": dict(likelihood="logistic_mixture", num_bits=5, image_channels=4, exact_edges=True, num_flows=2)
    | dict(num_latent_scales=1, num_groups_per_scale=3, num_cells_per_group_encoder=2, num_cells_per_group_decoder=2),
    "normal": dict(likelihood="normal", num_bits=8, image_channels=2, residual_distributions=False)
    | dict(image_height=8, image_width=8, num_preprocess_blocks=1, num_postprocess_blocks=1, cell_set="res_bnelu"),
    "two scales": dict(cell_set="mbconv_sep"),
    "dilated": dict(cell_set="res53_mbconv", num_latent_scales=1, num_groups_per_scale=2),
}


def training_graph(model):
    def gradients(images):
        noise = [tf.zeros((2, *shape)) for shape in model.plan.latent_shapes()]
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            metrics, *_ = loss_terms(model, images, noise, tf.constant(0), forward)
        return tape.gradient(metrics.loss, model.trainable_weights), [value for _, value in forward.updates()]

    config = model.config
    images = tf.TensorSpec((2, *config.image_shape))
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
@pytest.mark.parametrize("variant", GRAPHS)
def test_sums_of_many_gradients_have_an_order(variant):
    """AddN begins with any buffer that it can write to, so three terms have three sums; slices share no pixel."""
    unordered = []
    for nodes in training_graph(tiny_model(**GRAPHS[variant])):
        producers = {node.name: node for node in nodes}
        unordered += [
            list(node.input)
            for node in nodes
            if node.op == "AddN" and len(node.input) > 2
            if any(producers[name.split(":")[0]].op != "StridedSliceGrad" for name in node.input)
        ]
    assert not unordered


PARAMETERS = dict(mnist=33_363_134, cifar10=130_852_480, imagenet32=268_509_444)
PARAMETERS |= dict(celeba64=153_281_364, celebahq256=330_798_664)


@pytest.mark.parametrize("name", slow_but("mnist", of=PARAMETERS))
def test_parameter_counts(name):
    # In a graph, which holds no arrays.
    with tf.Graph().as_default():
        weights = NVAE(experiment_config(presets.preset(name)).model).trainable_weights
    assert sum(math.prod(weight.shape) for weight in weights) == PARAMETERS[name]


# Settings of the model and of the training; together they have all kinds of cells, likelihoods and steps.
FRAMED = dict(image_height=8, image_width=8, num_preprocess_blocks=1, num_postprocess_blocks=1, num_flows=1)
ON_GPUS = {
    "bernoulli": (FRAMED | dict(cell_set="res53_mbconv"), dict(recompute="all", precision="mixed_float16")),
    "logistic mixture": (
        dict(likelihood="logistic_mixture", num_bits=5, image_channels=3, exact_edges=True)
        | dict(cell_set="mbconv_sep", num_latent_scales=1, num_groups_per_scale=2),
        dict(accumulate_steps=2, precision="mixed_bfloat16"),
    ),
    "normal, dense cells, classes": (
        dict(likelihood="normal", num_bits=8, image_channels=2, residual_distributions=False)
        | dict(cell_set="res_bnelu", num_latent_scales=1, num_groups_per_scale=2, num_classes=3),
        dict(label_dropout=0.2, precision="mixed_bfloat16"),
    ),
}
BATCH = 4


@functools.cache
def runs_on_gpus(operation, types):
    """Whether there is a kernel for numbers of these types; one for the device DEFAULT is for all devices."""
    types = dict(types)

    def fits(kernel):
        constraints = [(types.get(each.name, ()), each.allowed_values.list.type) for each in kernel.constraint]
        return all({*numbers} <= {*allowed} for numbers, allowed in constraints)

    registered = kernels.get_registered_kernels_for_op(operation).kernel
    of_gpus = (kernel for kernel in registered if kernel.device_type in ("GPU", "DEFAULT"))
    # Those with a label are for nodes that ask for it.
    return any(fits(kernel) for kernel in of_gpus if not kernel.label)


def operations_of(function):
    """The operations of a function and of all that it calls, and which of them have no kernel for GPUs."""
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
    called = {inner.signature.name for inner in definition.library.function}
    nodes, missing = [node for node in nodes if node.op not in called], set()
    for node in nodes:
        types = ((name, tuple(value.list.type) or (value.type,)) for name, value in node.attr.items())
        types = tuple(sorted((name, several) for name, several in types if any(several)))
        if not runs_on_gpus(node.op, types):
            missing.add((node.op, types))
    return {node.op for node in nodes}, missing


def graphs(config):
    """The training step, sampling, scoring, and the step of `evaluate`."""
    model = model_for_training(config, steps_per_epoch=10, total_steps=100).model
    model.optimizer.build(model.trainable_variables)
    size = config.model.image_shape
    images, temperatures = tf.TensorSpec((BATCH, *size)), [0.7] * config.model.num_latent_scales
    batch, labels, guided = images, None, {}
    if config.model.num_classes:
        batch, labels, guided = (images, tf.TensorSpec([BATCH], tf.int32)), 1, {"guidance": 2.0}

    def traced(function, *arguments):
        return tf.function(function, autograph=False).get_concrete_function(*arguments)

    return {
        "training": step_function(tf.distribute.get_strategy(), model, is_jit=False).get_concrete_function(batch),
        "sampling": traced(lambda: model.generate(BATCH, temperatures, seed=1, labels=labels, **guided)),
        "scoring": traced(lambda images: model.score(images, importance_samples=3, seed=1, labels=labels), images),
        "evaluation": traced(model.test_step, batch),
    }


@pytest.mark.slow
@pytest.mark.parametrize("variant", ON_GPUS)
def test_every_operation_has_a_gpu_kernel(variant, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "gpus", lambda: True)
    model, train = ON_GPUS[variant]
    config = ExperimentConfig(model=tiny_config(**model), train=TrainConfig(**train))
    for name, function in graphs(config).items():
        operations, missing = operations_of(function)
        # The words of an assertion are the host's.
        assert missing <= {("Const", (("dtype", (tf.string.as_datatype_enum,)),))} and len(operations) > 40, name
        if name == "training":  # with the forms that GPUs get
            assert ("DepthwiseConv2dNativeBackpropFilter" in operations) == (config.model.cell_set != "res_bnelu")
