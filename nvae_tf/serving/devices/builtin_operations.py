"""Rewrites a SavedModel for TFLite's converter, which can't bring all that training uses to its builtin operations.

The numbers stay the same up to rounding. What is rewritten, in every function of the graph:

- functions marked as not to be inlined (`nvae_tf.layers.stacked`: for a quick first step) may be: a call of a
  function is no builtin;
- swish, written as SoftplusGrad (`nvae_tf.layers.cpu_kernels`: one pass over memory), becomes `x * sigmoid(x)`;
- nearest doubling, written as a broadcast of rank 6 (`nvae_tf.layers.cpu_kernels`), becomes ResizeNearestNeighbor:
  TFLite slices at most 5 axes, and its delegates know the resize.
"""

import pathlib

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf import saved_model_pb2

_FILE = "saved_model.pb"
# Of `[batch, height, new, width, new, channels]`, a bit an axis.
_DOUBLING_AXES = 0b010100


def rewrite_for_builtins(folder: pathlib.Path) -> None:
    """Rewrites the graph of the SavedModel in `folder` in place; variables and signatures stay as they are."""
    file = folder / _FILE
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        for function in meta_graph.graph_def.library.function:
            function.attr.pop("_noinline", None)
            renamed = _write_out_swish(function) | _resize_where_broadcast(function)
            _rename(function, renamed)
    file.write_bytes(saved.SerializeToString())


def _write_out_swish(function: FunctionDef) -> dict[str, str]:
    """SoftplusGrad(g, x) -> Mul(g, Sigmoid(x)); gives the old names of outputs and the new ones."""
    renamed = {}
    for node in [node for node in function.node_def if node.op == "SoftplusGrad"]:
        gradients, features, *control = node.input
        sigmoid = function.node_def.add(name=f"{node.name}/sigmoid", op="Sigmoid", input=[features])
        sigmoid.attr["T"].CopyFrom(node.attr["T"])
        renamed |= _replace(node, "Mul", [gradients, f"{sigmoid.name}:y:0", *control], "backprops", "z", ["T"])
    return renamed


def _resize_where_broadcast(function: FunctionDef) -> dict[str, str]:
    """Reshape(BroadcastTo(x with new axes)) -> ResizeNearestNeighbor(x); gives the old names and the new ones."""
    nodes = {node.name: node for node in function.node_def}
    renamed = {}
    for node in list(function.node_def):
        broadcast = _input_of(nodes, node, "Reshape", "BroadcastTo")
        sliced = broadcast and _input_of(nodes, broadcast, "BroadcastTo", "StridedSlice")
        if sliced is None or sliced.attr["new_axis_mask"].i != _DOUBLING_AXES:
            continue
        _, height, width, _ = tf.make_ndarray(nodes[_name(node.input[1])].attr["value"].tensor)
        size = function.node_def.add(name=f"{node.name}/size", op="Const")
        size.attr["dtype"].type = tf.int32.as_datatype_enum
        size.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.int32([height, width])))
        inputs = [sliced.input[0], f"{size.name}:output:0"]
        renamed |= _replace(node, "ResizeNearestNeighbor", inputs, "output", "resized_images", ["T"])
    return renamed


def _input_of(nodes: dict[str, NodeDef], node: NodeDef, operation: str, of_input: str) -> NodeDef | None:
    """The first input of a node if the two are such operations."""
    given = nodes.get(_name(node.input[0])) if node.op == operation else None
    return given if given is not None and given.op == of_input else None


def _name(tensor: str) -> str:
    """The node that gives a tensor `node:output:0` of a function."""
    return tensor.partition(":")[0]


def _replace(
    node: NodeDef, operation: str, inputs: list[str], output: str, new_output: str, kept: list[str]
) -> dict[str, str]:
    """Makes another operation of a node; of its attributes only those named stay."""
    attributes = {name: node.attr[name] for name in kept}
    replaced = NodeDef(name=node.name, op=operation, input=inputs, attr=attributes)
    node.CopyFrom(replaced)
    return {f"{node.name}:{output}:0": f"{node.name}:{new_output}:0"}


def _rename(function: FunctionDef, renamed: dict[str, str]) -> None:
    for node in function.node_def:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for result, name in function.ret.items():
        function.ret[result] = renamed.get(name, name)
