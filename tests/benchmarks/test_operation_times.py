import pytest
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
    (products,) = (each for each in operations if "MatMul" in each["operation"])
    (swish,) = (each for each in operations if each["operation"] == "SoftplusGrad")
    assert products["count"] == 2 and swish["count"] == 1 and 0 < swish["seconds"] < 1
    assert not {"turn", "Run", "FunctionRun"} & {each["operation"] for each in operations}
    rows = {row["operations"]: row for row in operation_times.by_kind(operations)}
    assert rows["swish"]["count"] == 1 and rows["matrix products (1x1 convolutions, dense)"]["count"] == 2
    assert rows["convolutions"]["count"] == 0 and sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
