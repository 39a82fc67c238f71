"""Forward mode and second derivatives of what users differentiate: the same numbers by every way, and none left out."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers import ForwardPass, cpu_kernels, normalization, residual_cells
from nvae_tf.models import training_step
from tests.tiny_model import images_of, shaken, tiny_model

# Operations of floats without a gradient that may stand on the way: constants on purpose, or behind a gradient of ours.
WITHOUT_GRADIENT = {
    "StopGradient": "the weights of groups in the warm-up, and the largest number in a sum of exponentials",
    "ZerosLike": "no function of its input's values",
    "OnesLike": "no function of its input's values",
}


def functions_of(model):
    """By name a function with one number as result, and the tensors or variables that it is differentiated by."""
    # Only where the power iteration has converged is the gradient of a spectral norm exact. It converges quickly
    # where the largest singular value of a kernel is twice the next one.
    for kernel in (weight for weight in model.trainable_weights if len(weight.shape) == 5):
        left, singular, right = np.linalg.svd(kernel.numpy().reshape(kernel.shape[0], -1, kernel.shape[-1]), False)
        singular[:, 1:] *= 0.5
        kernel.assign((left * singular[:, np.newaxis] @ right).reshape(kernel.shape))
    model.spectral_regularizer.FIRST_ITERATIONS = 20
    images = 0.4 * tf.constant(images_of(model.config, 2)) + 0.3
    latents = [tf.constant(latent) for latent in model.encode(images, seed=1)]

    def number(*results):
        results = [result for result in tf.nest.flatten(results) if result.dtype == tf.float32]
        return tf.add_n([tf.reduce_sum(tf.sin(3.0 * result)) for result in results])

    def loss(*_):
        noise = training_step.draws(model, images, 3)
        # After the warm-up: before it, the groups have weights that are without gradient on purpose.
        return training_step.loss_terms(model, images, noise, tf.constant(1e6), ForwardPass(training=True))[0].loss

    return {
        "encode": (lambda images: number(model.encode(images, seed=1)), [images]),
        "decode": (lambda *latents: number(model.decode(latents)), latents),
        "infer": (lambda images: number(model.infer(images, seed=1)), [images]),
        "score": (lambda images: tf.reduce_sum(model.score(images, seed=1, per_group=True).nelbo), [images]),
        "importance": (lambda images: tf.reduce_sum(model.score(images, seed=1, importance_samples=2)), [images]),
        "loss": (loss, [weight.value for weight in model.trainable_weights]),
    }


@pytest.fixture(scope="module")
def functions():
    """Of models with two groups: on two scales, and where all of a step is differentiated, which takes long, on one."""
    # So much regularization that errors of its derivatives are seen among the loss's.
    settings = dict(likelihood="normal", num_bits=8, seed=0, objective=ObjectiveConfig(regularization=1.0))
    functions, steps = (
        functions_of(shaken(tiny_model(num_latent_scales=scales, num_groups_per_scale=3 - scales, **settings)))
        for scales in (2, 1)
    )
    return functions | {name: steps[name] for name in ("importance", "loss")}


# Operations with gradients of ours, alone.
generator = np.random.default_rng(0)
STATISTICS = [tf.constant(generator.uniform(0.5, 2.0, size=3), tf.float32) for _ in range(4)]
DENSE, DEPTHWISE = (tf.constant(generator.normal(size=(3, 3, 3, 3 // ways)), tf.float32) for ways in (1, 3))


def swish_convolution(convolve, kernel):
    return lambda x: residual_cells._without_keeping(convolve, x, *STATISTICS[:2], kernel)[0]


OPERATIONS = {
    "normalize": lambda x: cpu_kernels.normalize(x, *STATISTICS),
    "batch norm": lambda x: normalization._normalized_by_batch(x, *STATISTICS[:2])[0],
    "convolution": swish_convolution(lambda x, weights: tf.nn.conv2d(x, weights.kernel, 1, "SAME"), DENSE),
    "depthwise": swish_convolution(
        lambda x, weights: cpu_kernels.depthwise_convolution(cpu_kernels.nearest_upsampling(x), weights.kernel),
        DEPTHWISE,
    ),
    "bilinear": residual_cells.aligned_bilinear_upsampling,
    "concatenated": lambda x: cpu_kernels.concatenated([x, 2.0 * x]),
}


def traced(function):
    return tf.function(function, autograph=False)


IN_GRAPHS = [(traced, traced), (traced, None), (None, traced)]
WAYS = [(None, None), *(pytest.param(*way, marks=pytest.mark.slow) for way in IN_GRAPHS)]


X, DIRECTION = (tf.constant(np.random.default_rng(i).normal(size=(2, 4, 4, 3)), tf.float32) for i in (1, 2))


@functools.cache
def along_the_direction(name):
    """An operation as a function with one number as result, its slope there, and the change of its gradient."""
    function = lambda x: tf.reduce_sum(tf.sin(OPERATIONS[name](x)))  # noqa: E731
    first = traced(lambda x: gradient(function, [x]))
    slope = np.sum(first(X)[0] * np.float64(DIRECTION))
    return function, slope, *product_by_differences(first, [X], [DIRECTION], 2e-3)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("inner", "outer"), WAYS, ids="inline-eager called-graph called-eager inline-graph".split())
def test_operations_with_gradients_of_ours(name, inner, outer):
    function, slope, expected = along_the_direction(name)
    function = inner(function) if inner else function
    methods = forward_mode, product_by_two_tapes, product_forward_over_reverse
    run = lambda x: [method(function, [x], [DIRECTION]) for method in methods]  # noqa: E731
    found, *products = (outer or (lambda each: each))(run)(X)
    assert float(found) == pytest.approx(slope, rel=1e-3)
    for (product,) in products:
        assert np.linalg.norm(product - expected) <= 1e-3 * np.linalg.norm(expected)


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
        pairs = zip(gradient(function, sources), direction, strict=True)
        return tf.add_n([tf.reduce_sum(one * other) for one, other in pairs])

    return gradient(along, sources)


def product_forward_over_reverse(function, sources, direction):
    with tf.autodiff.ForwardAccumulator(sources, direction) as accumulator:
        result = gradient(function, sources)
    return accumulator.jvp(result)


def product_by_differences(first_derivative, sources, direction, size):
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


@pytest.fixture(scope="module")
def gradients(functions):
    """By name the graph of a function's gradient, and what it is given: sources that are no variables."""

    @functools.cache
    def graph_of(name):
        function, sources = functions[name]
        given = [] if isinstance(sources[0], tf.Variable) else sources
        return traced(lambda *given: gradient(function, list(given) or sources)), given

    return graph_of


@pytest.fixture(scope="module")
def derivatives(functions, gradients):
    """By name a function, its sources, a direction, and along it the slope and the change of the gradient."""

    @functools.cache
    def along_a_direction(name):
        (function, sources), (first, given) = functions[name], gradients(name)
        normal = np.random.default_rng(0).normal
        direction = [tf.constant(normal(size=source.shape), tf.float32) for source in sources]
        length = tf.linalg.global_norm(direction)
        direction = [part / length for part in direction]
        slope = sum(np.sum(np.float64(part) * one) for part, one in zip(first(*given), direction, strict=True))
        change = product_by_differences(first, sources, direction, 1e-2 if given else 3e-3)
        return function, sources, direction, slope, change

    return along_a_direction


# Each function in a graph or eagerly; both where the loop, or the power iteration's loop, has a form of its own.
CASES = [("encode", True), ("decode", False), ("infer", False), ("score", True)]
CASES += [("importance", False), ("importance", True), ("loss", False), ("loss", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "compiled"), CASES)
def test_forward_mode_and_second_derivatives(name, compiled, derivatives):
    function, sources, direction, slope, change = derivatives(name)
    given = [] if isinstance(sources[0], tf.Variable) else sources

    def both(*given):
        return [method(function, list(given) or sources, direction) for method in (forward_mode, product_by_two_tapes)]

    found, products = (traced(both) if compiled else both)(*given)
    assert float(found) == pytest.approx(slope, rel=1e-3)
    product, expected = (np.concatenate([np.ravel(part) for part in parts]) for parts in (products, change))
    assert np.linalg.norm(product - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan", "settings"),
    [
        (False, dict(recompute="all", num_groups_per_scale=2)),
        (True, dict(num_groups_per_scale=1, num_preprocess_blocks=1, num_postprocess_blocks=1, num_preprocess_cells=4)),
    ],
    ids=["recomputed", "scanned"],
)
def test_second_derivatives_through_recomputed_cells_or_the_loop_are_errors(scan, settings):
    model = tiny_model(likelihood="normal", num_bits=8, num_latent_scales=1, **settings)
    images = tf.constant(images_of(model.config, 2))

    def loss(*_):
        noise, forward = training_step.draws(model, images, 3), ForwardPass(training=True, scanned=scan)
        return training_step.loss_terms(model, images, noise, tf.constant(1e6), forward, regularize=False)[0].loss

    sources = [weight.value for weight in model.trainable_weights]
    for method in (forward_mode, product_by_two_tapes, product_forward_over_reverse):
        # The errors are TensorFlow's own.
        with pytest.raises((NotImplementedError, TypeError, AttributeError)):
            traced(lambda method=method: method(loss, sources, sources))()


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


@pytest.mark.parametrize("name", ["encode", "decode", "infer", "score", "importance", "loss"])
def test_every_operation_of_floats_has_a_gradient(name, gradients):
    first, given = gradients(name)
    graph = first.get_concrete_function(*given).graph

    def floats(tensors):
        return any(tensor.dtype.is_floating for tensor in tensors)

    of_floats = [each for each in operations(graph) if floats(each.inputs) and floats(each.outputs)]
    lacking = {operation.type for operation in of_floats if not is_differentiable(operation)}
    assert lacking <= set(WITHOUT_GRADIENT)
