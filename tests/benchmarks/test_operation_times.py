"""The profile of a workload: types of operations, their groups, and what is no operation."""

import pytest
import tensorflow as tf

from benchmarks import operation_times


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """Of three turns with two matrix products and a swish each."""
    log = tmp_path_factory.mktemp("profile")
    matrix = tf.random.normal([300, 300])

    @tf.function(autograph=False)
    def turn():
        return tf.raw_ops.SoftplusGrad(gradients=matrix, features=matrix @ (matrix @ matrix))

    turn()
    with tf.profiler.experimental.Profile(str(log)):
        for _ in range(3):
            turn()
    return operation_times.operation_times(log, turns=3)


def test_operations_are_counted_a_turn(operations):
    (products,) = (times for name, times in operations.items() if "MatMul" in name)
    assert products["count"] == 2 and operations["SoftplusGrad"]["count"] == 1
    assert 0 < operations["SoftplusGrad"]["seconds"] < 1
    assert not {"turn", "Run", "FunctionRun"} & set(operations)
    assert list(operations.values()) == sorted(operations.values(), key=lambda times: -times["seconds"])


def test_groups_hold_every_operation_once(operations):
    groups = operation_times.by_kind(operations)
    for key in ("seconds", "count"):
        of_groups = sum(group[key] for group in groups.values())
        assert of_groups == pytest.approx(sum(times[key] for times in operations.values()))
    assert groups["swish"]["count"] == 1 and groups["matrix products (1x1 convolutions, dense)"]["count"] == 2


def test_the_table_has_the_groups_and_the_largest_of_the_others(operations):
    machine = {"processor": "a", "cores": 2, "load_average_at_start": 0.1, "memory_bytes": 8e9, "system": "L"}
    result = {"workload": "training", "preset": "digits", "batch_size": 60, "turn_seconds": 0.5, "machine": machine}
    text = operation_times.table(result | {"operations": operations, "versions": {}, "date": "today"})
    assert "| swish | " in text and "batch 60: 0.500 s" in text and "Most of the others: " in text
