import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.training.graph_memory import Timeline, memory_timeline, reserved_bytes

SIDE = 64
UNIT = SIDE * SIDE * 4
MATRIX = tf.TensorSpec([SIDE, SIDE])
NOT_INLINED = dict(autograph=False, experimental_attributes={"_noinline": True})


def timeline(function, argument=MATRIX):
    return memory_timeline(tf.function(function, autograph=False).get_concrete_function(argument))


def peak(function, argument=MATRIX):
    """In matrices; scalars round down to nothing."""
    return timeline(function, argument).peak_bytes // UNIT


def squared(x):
    """Never in place."""
    return tf.matmul(x, x)


def read_later(x):
    early = squared(x)
    return tf.matmul(squared(squared(early)), early)


def with_a_dead_end(x):
    squared(squared(x))
    return squared(x)


def view_kept(x):
    return tf.tensordot(tf.reshape(squared(x), [SIDE, SIDE]), squared(squared(x)), 1)


def read_again(x):
    y = squared(x)
    return tf.matmul(tf.exp(y), y)


def condition(x):
    return tf.cond(x[0, 0] > 0.0, lambda: x, lambda: squared(squared(squared(x))))


def loop(x):
    return tf.while_loop(lambda i, y: i < 9, lambda i, y: (i + 1, squared(squared(squared(y)))), [0, squared(x)])


PEAKS = {
    "a chain needs two links at a time": (lambda x: squared(squared(squared(squared(x)))), 2),
    "kept until it is read": (read_later, 3),
    "what no output needs does not run": (with_a_dead_end, 1),
    "a view keeps its buffer": (view_kept, 3),
    "a stack of one is a view": (lambda x: tf.stack([squared(x)]), 1),
    "a stack of two is not": (lambda x: tf.stack([squared(x), x]), 3),
    "in place with two inputs": (lambda x: tf.nn.relu(squared(x)) + x, 1),
    "not in place where the input is read again": (read_again, 3),
    "not into arguments": (tf.exp, 1),
    "not into constants": (lambda x: tf.exp(tf.constant(np.eye(SIDE, dtype=np.float32))) + x, 1),
    "an inlined branch frees what it has read, and the longer one counts": (lambda x: condition(squared(x)), 2),
    "one turn of a loop": (loop, 2),
}


@pytest.mark.parametrize("case", PEAKS)
def test_peaks(case):
    function, expected = PEAKS[case]
    assert peak(function) == expected


def test_slices_along_the_first_axis_are_views_and_an_unused_output_is_freed_at_once():
    stack = tf.TensorSpec([4, SIDE, SIDE])
    assert peak(lambda x: tf.unstack(tf.matmul(x, x)), stack) == 4
    assert peak(lambda x: tf.unstack(tf.matmul(x, x), axis=1), stack) == 8
    found = timeline(lambda x: squared(squared(tf.linalg.qr(x)[0])))
    assert found.changes[:3].tolist() == [UNIT, UNIT, -UNIT]
    assert found.peak_bytes == 2 * UNIT
    # Nor is what has another size made in place.
    assert timeline(lambda x: tf.cast(squared(x), tf.float16)).peak_bytes == 1.5 * UNIT
    # Unknown sizes are listed.
    assert timeline(lambda x: tf.exp(tf.boolean_mask(x, x[:, 0] > 0.0))).unknown and not found.unknown


def test_side_effects_are_walked_and_variables_are_not_counted():
    variable = tf.Variable(tf.zeros([SIDE, SIDE]))
    assert peak(lambda x: tf.exp(variable)) == 1

    def function(x):
        variable.assign(squared(squared(variable)))

    assert peak(function) == 2


@pytest.mark.parametrize(("attributes", "expected"), [({"_noinline": True}, 3), ({}, 2)])
def test_a_call_that_is_not_inlined_holds_its_arguments(attributes, expected):
    chain = tf.function(lambda x: squared(squared(squared(x))), autograph=False, experimental_attributes=attributes)
    assert peak(lambda x: chain(squared(x))) == expected
    # The outputs are the caller's, and each call allocates its own.
    assert peak(lambda x: tf.matmul(chain(x), chain(x))) == 3
    # What a function passes through stays one buffer.
    passing = tf.function(lambda x: (tf.identity(x), x), **NOT_INLINED)
    found = timeline(lambda x: tf.add(*passing(squared(x))))
    assert found.peak_bytes // UNIT == 2 and found.changes.sum() == 0


def test_gradients_of_functions_count_what_the_forward_pass_keeps():
    cell = tf.function(lambda x: tf.matmul(tf.matmul(x, x), x), **NOT_INLINED)

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


@pytest.mark.parametrize(("is_ordered", "expected"), [(False, 3), (True, 1)])
def test_operations_run_when_ready_unless_control_dependencies_hold_them_back(is_ordered, expected):
    def function(x):
        sums = []
        for _ in range(3):
            with tf.control_dependencies(sums[-1:] if is_ordered else []):
                sums.append(tf.reduce_sum(squared(x)))
        return sums

    assert peak(function) == expected


def events(*steps):
    """From `("a", 3)` for a buffer of 3 MiB that is allocated, and `"a"` for one that is freed."""
    sizes = dict(step for step in steps if isinstance(step, tuple))
    numbers = {name: number for number, name in enumerate(sizes)}
    names = [step[0] for step in steps]
    signs = [1 if isinstance(step, tuple) else -1 for step in steps]
    changes = [sign * sizes[name] * 2**20 for name, sign in zip(names, signs, strict=True)]
    return Timeline(np.array(changes), np.array([numbers[name] for name in names]), ())


PLACES = {
    "a gap that is too small": ([("a", 1), ("b", 1), "a", ("c", 2), "b", "c"], 4),
    "adjacent gaps are joined": ([("a", 1), ("b", 1), ("c", 1), "b", "a", ("d", 2), "c", "d"], 3),
    "best fit": ([("a", 4), ("b", 1), ("c", 2), ("d", 1), "a", "c", ("e", 2), ("f", 4), "b", "d", "e", "f"], 8),
    "a small rest is not split": ([("a", 3), ("b", 1), "a", ("c", 2), ("d", 1), "b", "c", "d"], 5),
    "half is": ([("a", 4), ("b", 1), "a", ("c", 2), ("d", 2), "b", "c", "d"], 5),
    "and 128 MiB": ([("a", 399), ("b", 1), "a", ("c", 271), ("d", 128), "b", "c", "d"], 400),
    "nothing": ([], 0),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_the_last_buffer_ends(case):
    steps, expected = PLACES[case]
    found = events(*steps)
    assert reserved_bytes(found) == expected * 2**20 >= found.peak_bytes


def test_sizes_are_rounded_and_empty_buffers_take_nothing():
    assert reserved_bytes(Timeline(np.array([1, 257, 0, 0, -1, -257]), np.array([0, 1, 2, 2, 0, 1]), ())) == 768
