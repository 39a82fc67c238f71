import tensorflow as tf

from benchmarks import operation_times


def test_operations_are_counted_a_turn_and_in_one_group_each(tmp_path):
    matrix = tf.random.normal([300, 300])

    @tf.function(autograph=False)
    def turn():
        return tf.raw_ops.SoftplusGrad(gradients=matrix, features=matrix @ (matrix @ matrix))

    turn()
    with tf.profiler.experimental.Profile(str(tmp_path)):
        for _ in range(3):
            turn()
    operations = operation_times.operation_times(tmp_path, turns=3)
    (products,) = (measured for name, measured in operations.items() if "MatMul" in name)
    assert products["count"] == 2 and operations["SoftplusGrad"]["count"] == 1
    assert 0 < operations["SoftplusGrad"]["seconds"] < 1 and not {"turn", "Run", "FunctionRun"} & set(operations)
    machine = {"processor": "a", "cores": 2, "load_average_at_start": 0.1, "memory_bytes": 8e9, "system": "L"}
    result = {"workload": "training", "preset": "digits", "batch_size": 60, "turn_seconds": 0.5, "machine": machine}
    text = operation_times.table(result | {"operations": operations, "versions": {}, "date": "today"})
    assert "batch 60: 0.500 s" in text and "Most of the others: " in text
    counts = {line.split(" | ")[0]: line.split(" | ")[3] for line in text.splitlines() if line.startswith("| ")}
    assert counts["| swish"] == "1 |" and counts["| matrix products (1x1 convolutions, dense)"] == "2 |"
    assert counts["| convolutions"] == "0 |"
