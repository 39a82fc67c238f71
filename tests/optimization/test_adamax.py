"""The optimizer against a loop in numpy, eagerly, in a graph, and rebuilt from its settings."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.optimization import NVAEAdamax, WarmupCosine

SHAPES = [(3, 4), (5,), (), (300, 300), (400, 200)]  # the last two are updated one after the other


def gradients_of_steps(count=6):
    generator = np.random.default_rng(3)
    steps = [[generator.normal(size=shape) for shape in SHAPES] for _ in range(count)]
    steps[2] = [0.0 * gradient for gradient in steps[2]]  # nothing but decay
    return [[np.float32(gradient) for gradient in step] for step in steps]


def start():
    generator = np.random.default_rng(4)
    return [np.float32(generator.normal(size=shape)) for shape in SHAPES]


def expected_weights(steps, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-3, l2=3e-4):
    weights = [np.float64(value) for value in start()]
    momentum = [np.zeros(shape) for shape in SHAPES]
    largest = [np.zeros(shape) for shape in SHAPES]
    for t, gradients in enumerate(steps, start=1):
        for i, gradient in enumerate(gradients):
            gradient = gradient + l2 * weights[i]
            momentum[i] = beta_1 * momentum[i] + (1.0 - beta_1) * gradient
            largest[i] = np.maximum(beta_2 * largest[i], np.abs(gradient) + epsilon)
            weights[i] = weights[i] - rate(t - 1) / (1.0 - beta_1**t) * momentum[i] / largest[i]
    return weights


def eagerly(optimizer, variables):
    return lambda gradients: optimizer.apply(gradients, variables)


def in_graph(optimizer, variables):
    return tf.function(lambda gradients: optimizer.apply(gradients, variables))


def weights_after(optimizer, steps, compiled=False):
    variables = [keras.Variable(value) for value in start()]
    optimizer.build(variables)
    apply = in_graph(optimizer, variables) if compiled else eagerly(optimizer, variables)
    for gradients in steps:
        apply([tf.constant(gradient) for gradient in gradients])
    return [variable.numpy() for variable in variables]


def assert_near(values, expected, rtol=1e-4):
    for value, target in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, target, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("l2", [0.0, 0.1], ids=["no decay", "decay"])
def test_several_steps(l2, compiled):
    steps = gradients_of_steps()
    found = weights_after(NVAEAdamax(0.05, l2=l2), steps, compiled)
    assert_near(found, expected_weights(steps, lambda step: 0.05, l2=l2))


def test_other_settings():
    steps = gradients_of_steps()
    settings = dict(beta_1=0.8, beta_2=0.9, epsilon=0.1, l2=0.2)
    found = weights_after(NVAEAdamax(0.05, **settings), steps)
    assert_near(found, expected_weights(steps, lambda step: 0.05, **settings))


def test_the_defaults_are_those_of_the_paper():
    optimizer = NVAEAdamax()
    assert float(optimizer.learning_rate) == pytest.approx(1e-2)
    settings = (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon, optimizer.l2)
    assert settings == (0.9, 0.999, 1e-3, 3e-4)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_the_rate_of_a_schedule_is_that_of_the_step(compiled):
    schedule = WarmupCosine(0.1, 0.01, warmup_steps=2, steps_per_epoch=2, total_steps=6)
    steps = gradients_of_steps()
    rates = [float(schedule(step)) for step in range(6)]
    found = weights_after(NVAEAdamax(schedule), steps, compiled)
    assert_near(found, expected_weights(steps, rates.__getitem__))


def test_the_first_step_moves_by_the_rate_where_the_gradient_is_large():
    variable = keras.Variable(np.zeros(2, np.float32))
    NVAEAdamax(0.5, l2=0.0).apply([tf.constant([1e6, -1e6])], [variable])
    np.testing.assert_allclose(variable, [-0.5, 0.5], rtol=1e-5)
    # Where it is small against epsilon, hardly.
    variable = keras.Variable(np.zeros(1, np.float32))
    NVAEAdamax(0.5, l2=0.0).apply([tf.constant([1e-5])], [variable])
    np.testing.assert_allclose(variable, [-0.5 * 1e-5 / (1e-5 + 1e-3)], rtol=1e-4)


def test_rebuilt_from_its_settings():
    optimizer = NVAEAdamax(0.03, beta_1=0.8, beta_2=0.9, epsilon=0.1, l2=0.2, name="mine")
    rebuilt = NVAEAdamax.from_config(optimizer.get_config())
    assert rebuilt.get_config() == optimizer.get_config()
    steps = gradients_of_steps()
    assert_near(weights_after(rebuilt, steps), weights_after(optimizer, steps), rtol=1e-6)


def test_rebuilt_with_a_schedule():
    schedule = WarmupCosine(0.1, 0.01, warmup_steps=2, steps_per_epoch=2, total_steps=6)
    custom = {"WarmupCosine": WarmupCosine}
    rebuilt = NVAEAdamax.from_config(NVAEAdamax(schedule).get_config(), custom_objects=custom)
    steps = gradients_of_steps()
    assert_near(weights_after(rebuilt, steps), weights_after(NVAEAdamax(schedule), steps), rtol=1e-6)


def test_keras_finds_it_by_its_serialized_form():
    serialized = keras.optimizers.serialize(NVAEAdamax(0.03, l2=0.2))
    assert keras.optimizers.deserialize(serialized).l2 == 0.2


def test_steps_in_a_graph_and_eager_steps_mix():
    steps = gradients_of_steps()
    optimizer = NVAEAdamax(0.05)
    variables = [keras.Variable(value) for value in start()]
    optimizer.build(variables)
    both = eagerly(optimizer, variables), in_graph(optimizer, variables)
    for index, gradients in enumerate(steps):
        both[index % 2]([tf.constant(gradient) for gradient in gradients])
    assert_near([variable.numpy() for variable in variables], expected_weights(steps, lambda step: 0.05))
    assert int(optimizer.iterations) == len(steps)
