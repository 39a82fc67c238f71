"""Every operation has a kernel for GPUs, so nothing falls back to the CPU: TensorFlow's registry knows that."""

import functools

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.layers import cpu_kernels
from nvae_tf.runs.new_model import model_for_training
from nvae_tf.training.strategy import step_function
from tests.tiny_model import tiny_config

# Settings of the model and of the training; together they have all kinds of cells, likelihoods and steps.
BLOCKS = dict(image_height=8, image_width=8, num_preprocess_blocks=1, num_postprocess_blocks=1, num_flows=1)
VARIANTS = {
    "bernoulli": (BLOCKS | dict(cell_set="res53_mbconv"), dict(recompute="all", precision="mixed_float16")),
    "logistic mixture": (
        dict(likelihood="logistic_mixture", num_bits=5, image_channels=3, exact_edges=True, cell_set="mbconv_sep"),
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
    """The operations of a function and of all that it calls, and those of them that no GPU has a kernel for."""
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
    size = config.model.image_height, config.model.image_width, config.model.image_channels
    images, temperatures = tf.TensorSpec((BATCH, *size)), [0.7] * config.model.num_latent_scales
    batch, labels, guided = images, None, {}
    if config.model.num_classes:
        batch, labels, guided = (images, tf.TensorSpec([BATCH], tf.int32)), 1, {"guidance": 2.0}

    def traced(function, *arguments):
        return tf.function(function, autograph=False).get_concrete_function(*arguments)

    return {
        "training": step_function(tf.distribute.get_strategy(), model, compiled=False).get_concrete_function(batch),
        "sampling": traced(lambda: model.generate(BATCH, temperatures, seed=1, labels=labels, **guided)),
        "scoring": traced(lambda images: model.score(images, importance_samples=3, seed=1, labels=labels), images),
        "evaluation": traced(model.test_step, batch),
    }


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_operation_has_a_gpu_kernel(variant, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "has_gpus", lambda: True)
    model, train = VARIANTS[variant]
    config = ExperimentConfig(model=tiny_config(**model), train=TrainConfig(**train))
    for name, function in graphs(config).items():
        operations, missing = operations_of(function)
        # The words of an assertion are the host's.
        assert missing <= {("Const", (("dtype", (tf.string.as_datatype_enum,)),))} and len(operations) > 40, name
        if name == "training":  # with the forms that GPUs get
            assert ("DepthwiseConv2dNativeBackpropFilter" in operations) == (config.model.cell_set != "res_bnelu")
