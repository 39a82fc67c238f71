"""Peaks of small graphs that can be counted by hand, in units of one matrix."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.memory import memory_timeline

SIDE = 64
UNIT = SIDE * SIDE * 4
MATRIX = tf.TensorSpec([SIDE, SIDE])


def timeline(function, *arguments):
    arguments = arguments or (MATRIX,)
    return memory_timeline(tf.function(function, autograph=False).get_concrete_function(*arguments))


def peak(function, *arguments):
    """In matrices; scalars round down to nothing."""
    return timeline(function, *arguments).peak_bytes // UNIT


def squared(x):
    """Never in place."""
    return tf.matmul(x, x)


def test_a_chain_needs_two_links_at_a_time():
    assert peak(lambda x: squared(x)) == 1
    assert peak(lambda x: squared(squared(x))) == 2
    assert peak(lambda x: squared(squared(squared(squared(x))))) == 2


def test_what_is_read_later_is_kept_until_then():
    def function(x):
        early = squared(x)
        return tf.matmul(squared(squared(early)), early)

    assert peak(function) == 3


def test_what_nobody_asks_for_is_not_made():
    def function(x):
        squared(squared(x))
        return squared(x)

    assert peak(function) == 1


def test_an_output_that_nobody_reads_is_there_for_a_moment():
    def function(x):
        q, _ = tf.linalg.qr(x)
        return squared(squared(q))

    found = timeline(function)
    assert found.changes[:3].tolist() == [UNIT, UNIT, -UNIT]
    assert found.peak_bytes == 2 * UNIT


def test_views_share_memory():
    def function(x):
        y = tf.reshape(squared(x), [-1, 2])
        return tf.reshape(tf.identity(tf.expand_dims(y, 0)), [SIDE, SIDE])

    assert peak(function) == 1
    # A view is enough to keep the whole.
    assert peak(lambda x: tf.tensordot(tf.reshape(squared(x), [SIDE, SIDE]), squared(squared(x)), 1)) == 3


def test_parts_along_the_first_axis_are_views():
    whole = tf.TensorSpec([4, SIDE, SIDE])
    assert peak(lambda x: tf.unstack(tf.matmul(x, x)), whole) == 4
    assert peak(lambda x: tf.unstack(tf.matmul(x, x), axis=1), whole) == 8
    assert peak(lambda x: tf.stack([squared(x)])) == 1
    assert peak(lambda x: tf.stack([squared(x), x])) == 3


def test_element_wise_operations_write_into_what_nobody_else_reads():
    assert peak(lambda x: tf.exp(tf.tanh(squared(x)))) == 1
    assert peak(lambda x: tf.nn.relu(squared(x)) + x) == 1

    def read_again(x):
        y = squared(x)
        return tf.matmul(tf.exp(y), y)

    assert peak(read_again) == 3
    # Neither into arguments, nor into variables and constants.
    assert peak(lambda x: tf.exp(x)) == 1
    variable = tf.Variable(tf.zeros([SIDE, SIDE]))
    assert peak(lambda x: tf.exp(variable)) == 1
    assert peak(lambda x: tf.exp(tf.constant(np.eye(SIDE, dtype=np.float32))) + x) == 1
    # Nor where the size is another.
    assert timeline(lambda x: tf.cast(squared(x), tf.float16)).peak_bytes == 1.5 * UNIT


@pytest.mark.parametrize(("attributes", "expected"), [({"_noinline": True}, 3), ({}, 2)])
def test_a_call_that_is_not_inlined_holds_its_arguments(attributes, expected):
    chain = tf.function(lambda x: squared(squared(squared(x))), autograph=False, experimental_attributes=attributes)
    assert peak(lambda x: chain(squared(x))) == expected
    # The outputs are the caller's, and each call takes its own.
    assert peak(lambda x: tf.matmul(chain(x), chain(x))) == 3


def test_what_a_function_passes_through_stays_one_buffer():
    passing = tf.function(lambda x: (tf.identity(x), x), autograph=False, experimental_attributes={"_noinline": True})

    def function(x):
        first, second = passing(squared(x))
        return first + second

    assert peak(function) == 2
    found = timeline(function)
    assert found.changes.sum() == 0


def test_gradients_of_functions_count_what_the_forward_pass_keeps():
    cell = tf.function(
        lambda x: tf.matmul(tf.matmul(x, x), x), autograph=False, experimental_attributes={"_noinline": True}
    )

    def function(x, depth):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in range(depth):
                y = cell(y)
        return tape.gradient(y, x)

    # One more cell keeps its output, which is the next one's input, and the product within it.
    depths = [peak(lambda x, depth=depth: function(x, depth)) for depth in (4, 5, 6)]
    assert np.diff(depths).tolist() == [2, 2]


def test_operations_run_when_they_are_ready_and_control_dependencies_hold_them_back():
    def function(x, one_after_the_other):
        sums = []
        for _ in range(3):
            with tf.control_dependencies(sums[-1:] if one_after_the_other else []):
                sums.append(tf.reduce_sum(squared(x)))
        return sums

    assert peak(lambda x: function(x, False)) == 3
    assert peak(lambda x: function(x, True)) == 1


def test_side_effects_are_walked_and_variables_are_not_counted():
    variable = tf.Variable(tf.zeros([SIDE, SIDE]))

    def function(x):
        variable.assign(squared(squared(variable)))

    assert peak(function) == 2


def test_the_longer_branch_of_a_condition_is_walked():
    def function(x):
        return tf.cond(x[0, 0] > 0.0, lambda: x, lambda: squared(squared(squared(x))))

    assert peak(function) == 2
    # Inlined: what a branch has read last is freed in it.
    assert peak(lambda x: function(squared(x))) == 2


def test_one_turn_of_a_loop_is_walked():
    def function(x):
        return tf.while_loop(lambda i, y: i < 9, lambda i, y: (i + 1, squared(squared(squared(y)))), [0, squared(x)])

    assert peak(function) == 2


def test_sizes_that_are_not_known_are_told():
    found = timeline(lambda x: tf.exp(tf.boolean_mask(x, x[:, 0] > 0.0)))
    assert found.unknown
    assert not timeline(squared).unknown
