"""Forward mode and second derivatives of what users differentiate: the same numbers by every way, and none left out."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from nvae_tf.layers import ForwardPass
from nvae_tf.models import training_step
from tests.tiny_model import images_of, shaken, tiny_model

# Operations of floats without a gradient that may stand on the way: constants on purpose, or behind a gradient of ours.
WITHOUT_GRADIENT = {
    "StopGradient": "the weights of groups in the warm-up, and the largest number in a sum of exponentials",
    "ZerosLike": "no function of its input's values",
    "OnesLike": "no function of its input's values",
    "ResizeBilinearGrad": "in aligned_bilinear_upsampling, whose gradient is its own",
}


@pytest.fixture(scope="module")
def functions():
    """By name a function with one number as result, and the tensors or variables that it is differentiated by."""
    model = shaken(tiny_model(likelihood="normal", num_bits=8, seed=0))
    images = 0.4 * tf.constant(images_of(model.config, 2)) + 0.3
    latents = [tf.constant(latent) for latent in model.encode(images, seed=1)]

    def number(*results):
        results = [result for result in tf.nest.flatten(results) if result.dtype == tf.float32]
        return tf.add_n([tf.reduce_sum(tf.sin(3.0 * result)) for result in results])

    def loss(*_):
        noise = training_step.draws(model, images, 3)
        return training_step.training_loss(model, images, noise, tf.constant(3.0), ForwardPass(training=True))[0].loss

    return {
        "encode": (lambda images: number(model.encode(images, seed=1)), [images]),
        "decode": (lambda *latents: number(model.decode(latents)), latents),
        "infer": (lambda images: number(model.infer(images, seed=1)), [images]),
        "score": (lambda images: tf.reduce_sum(model.score(images, seed=1, per_group=True).nelbo), [images]),
        "loss": (loss, [weight.value for weight in model.trainable_weights]),
    }


def gradient(function, sources):
    with tf.GradientTape() as tape:
        tape.watch(sources)
        result = function(*sources)
    return tape.gradient(result, sources, unconnected_gradients="zero")


def forward_mode(function, sources, direction):
    with tf.autodiff.ForwardAccumulator(sources, direction) as accumulator:
        result = function(*sources)
    return accumulator.jvp(result)


def product_by_two_tapes(function, sources, direction):
    def along(*sources):
        return tf.add_n(
            [tf.reduce_sum(pair[0] * pair[1]) for pair in zip(gradient(function, sources), direction, strict=True)]
        )

    return gradient(along, sources)


def product_by_differences(first_derivative, sources, direction, size=1e-2):
    def after(steps):
        moved = [value + steps * size * part for value, part in zip(start, direction, strict=True)]
        if not isinstance(sources[0], tf.Variable):
            return [np.float64(part) for part in first_derivative(*moved)]
        for variable, value in zip(sources, moved, strict=True):
            variable.assign(value)
        return [np.float64(part) for part in first_derivative()]

    start = [tf.identity(source) for source in sources]
    ends = [after(steps) for steps in (1, -1, 2, -2, 3, -3)]
    after(0)
    return [(45 * (a - b) - 9 * (c - d) + e - f) / (60 * size) for a, b, c, d, e, f in zip(*ends, strict=True)]


@pytest.mark.parametrize("name", ["encode", "decode", "infer", "score"])
@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.slow), True], ids=["eager", "graph"])
def test_forward_mode_and_second_derivatives(name, compiled, functions):
    function, sources = functions[name]
    normal = np.random.default_rng(0).normal
    direction = [tf.constant(normal(size=source.shape, scale=0.3), tf.float32) for source in sources]
    variables = isinstance(sources[0], tf.Variable)

    def run(method, *others):
        if variables:
            return lambda: method(function, sources, *others)
        return lambda *sources: method(function, list(sources), *others)

    make = (lambda method: tf.function(method, autograph=False)) if compiled else (lambda method: method)
    given = [] if variables else sources
    first = make(run(gradient))
    slope = sum(np.sum(np.float64(part) * one) for part, one in zip(first(*given), direction, strict=True))
    assert float(make(run(forward_mode, direction))(*given)) == pytest.approx(slope, rel=1e-3)
    found = np.concatenate([np.ravel(part) for part in make(run(product_by_two_tapes, direction))(*given)])
    differences = product_by_differences(first, sources, direction)
    expected = np.concatenate([np.ravel(part) for part in differences])
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def operations(graph):
    """All operations of a graph and of the functions that it calls."""
    yield from graph.get_operations()
    for name in graph.as_graph_def().library.function:
        function = graph._get_function(name.signature.name)
        if function is not None and function.graph is not graph:
            yield from function.graph.get_operations()


def is_differentiable(operation):
    try:
        return ops.get_gradient_function(operation) is not None
    except LookupError:
        return False


@pytest.mark.parametrize("name", ["encode", "decode", "infer", "score", "loss"])
def test_every_operation_of_floats_has_a_gradient(name, functions):
    function, sources = functions[name]
    traced = tf.function(lambda: gradient(function, sources), autograph=False).get_concrete_function()

    def floats(tensors):
        return any(tensor.dtype.is_floating for tensor in tensors)

    of_floats = [each for each in operations(traced.graph) if floats(each.inputs) and floats(each.outputs)]
    lacking = {operation.type for operation in of_floats if not is_differentiable(operation)}
    assert lacking <= set(WITHOUT_GRADIENT)
