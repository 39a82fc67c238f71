"""A frozen graph of TensorFlow 1, built for one image, as a function of a batch of images."""

from collections.abc import Mapping

import tensorflow as tf
from google.protobuf.message import DecodeError

from nvae_tf.setting_checks import check

_OLD_BATCH_NORM = "BatchNormWithGlobalNormalization"
_FLOAT = tf.float32.as_datatype_enum


def graph_of(content: bytes, where: str) -> tf.compat.v1.GraphDef:
    """The graph that a `.pb` file holds.

    Raises:
      ValueError: it holds none; the message begins with `where`.
    """
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(content)
    except DecodeError:
        raise ValueError(f"{where}: not a frozen graph of TensorFlow, or cut off; get it anew") from None
    return graph


def batch_function(
    graph: tf.compat.v1.GraphDef, operations: Mapping[str, str], image: str, output: str, where: str
) -> tf.types.experimental.ConcreteFunction:
    """The part of a graph from one node to another, for any number of images of any size.

    Args:
      graph: a frozen graph.
      operations: names of nodes that it must have, and their operations.
      image: name of the node in whose place images are given, float32 `[batch, height, width, 3]`.
      output: name of the node that is computed.
      where: what messages begin with.

    Raises:
      ValueError: it is another graph, or one image is built into it.
    """
    found = {node.name: node.op for node in graph.node}
    other = [f"{name} ({kind})" for name, kind in operations.items() if found.get(name) != kind]
    check(not other, f"{where}: another graph than expected, it lacks the nodes {', '.join(other)}")
    try:
        part = _renewed(_between(graph, image, output))
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(part, name=""), [])
        function = wrapped.prune(f"{image}:0", f"{output}:0")
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{where}: {output} can't be computed from {image} ({reason})") from None
    batch = function.outputs[0].shape[0]
    check(batch is None, f"{where}: {output} is of {batch} images, whatever is given at {image}")
    return function


def _between(graph: tf.compat.v1.GraphDef, image: str, output: str) -> tf.compat.v1.GraphDef:
    """What the output needs, with a place for a batch of images instead of what made one image."""
    part = tf.compat.v1.GraphDef()
    # The operations are the same as ever; with an old version number some are read by rules that functions don't know.
    part.versions.producer = tf.version.GRAPH_DEF_VERSION
    batch = part.node.add(name=image, op="Placeholder")
    batch.attr["dtype"].type = _FLOAT
    batch.attr["shape"].shape.CopyFrom(tf.TensorShape([None, None, None, 3]).as_proto())
    nodes = {node.name: node for node in graph.node}
    seen, waiting = {image}, [output]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue  # the import tells what is missing
        seen.add(name)
        copy = part.node.add()
        copy.CopyFrom(nodes[name])
        # What was inferred for one image.
        copy.attr.pop("_output_shapes", None)
        waiting.extend(source.removeprefix("^").partition(":")[0] for source in copy.input)
    return part


def _renewed(graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """The graph with today's batch norm for the old one, which TensorFlow refuses in functions."""
    renewed = tf.compat.v1.GraphDef()
    renewed.versions.CopyFrom(graph.versions)
    for node in graph.node:
        copy = renewed.node.add()
        copy.CopyFrom(node)
        if node.op != _OLD_BATCH_NORM:
            continue
        inputs, mean, variance, beta, gamma, *others = node.input
        if not node.attr["scale_after_normalization"].b:
            # It has a gamma, but does not use it.
            ones = renewed.node.add(name=f"{node.name}/no_scale", op="OnesLike", input=[gamma])
            ones.attr["T"].type = _FLOAT
            gamma = ones.name
        copy.Clear()
        copy.name, copy.op = node.name, "FusedBatchNormV3"
        copy.input.extend([inputs, gamma, beta, mean, variance, *others])
        copy.attr["T"].type = copy.attr["U"].type = _FLOAT
        copy.attr["epsilon"].f = node.attr["variance_epsilon"].f
        copy.attr["is_training"].b = False
    return renewed
