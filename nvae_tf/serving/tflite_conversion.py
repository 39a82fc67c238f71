"""Converts one signature to a .tflite file of builtin operations, with metadata beside the graph."""

import contextlib
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf import saved_model_pb2

from nvae_tf.errors import first_line, require

flatbuffers = require("flatbuffers", "tflite")
schema = require("ai_edge_litert.schema_py_generated", "tflite")

METADATA_NAME = "nvae_tf"
_FILE_IDENTIFIER = b"TFL3"
# Most of the converter's error messages is the whole graph.
_REASON_LENGTH = 500
# Of `[batch, height, new, width, new, channels]`, a bit an axis.
_DOUBLING_AXES = 0b010100


def convert(folder: pathlib.Path, name: str, quantize: str, representative: dict[str, np.ndarray] | None) -> bytes:
    """Converts a signature of a SavedModel, after `rewrite_for_builtins`, to a .tflite model of builtins alone.

    Int8 needs representative inputs of the signature, by name, each `[count, ...]`.

    Raises:
      ValueError: the converter can't do it with builtins.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[name])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        # Inputs and outputs stay float32: that is the converter's default.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        count = len(next(iter(representative.values())))
        rows = [{key: array[index : index + 1] for key, array in representative.items()} for index in range(count)]
        converter.representative_dataset = lambda: ((name, row) for row in rows)
    try:
        with _native_messages_dropped(), warnings.catch_warnings():
            # The converter itself takes the ranges of int8 with the old interpreter.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
            content = converter.convert()
    # The converter has errors of its own, and while it takes the ranges of int8 it raises plain RuntimeErrors.
    except Exception as error:
        reason = first_line(error)[:_REASON_LENGTH]
        raise ValueError(f"--signature={name} --quantize={quantize}: TFLite can't convert it: {reason}") from error
    foreign = foreign_operations(content)
    if foreign:
        raise ValueError(f"--signature={name} --quantize={quantize}: needs operations that are no builtins: {foreign}")
    return content


@contextlib.contextmanager
def _native_messages_dropped() -> Iterator[None]:
    """Drops what C++ libraries write to standard error: on a failure TFLite's converter writes the whole graph."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


def rewrite_for_builtins(folder: pathlib.Path) -> None:
    """Rewrites the graph of a SavedModel in place, since the converter has no builtins for some training operations.

    The numbers stay the same up to rounding, variables and signatures are not touched. In every function of the graph:

    - functions marked as not to be inlined (`nvae_tf.layers.stacked`: for a quick first step) may be: a call of a
      function is no builtin;
    - swish, written as SoftplusGrad (`nvae_tf.layers.cpu_kernels`: one pass over memory), becomes `x * sigmoid(x)`;
    - nearest doubling, written as a broadcast of rank 6 (`nvae_tf.layers.cpu_kernels`), becomes ResizeNearestNeighbor:
      TFLite slices at most 5 axes, and its delegates know the resize.
    """
    file = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        for function in meta_graph.graph_def.library.function:
            function.attr.pop("_noinline", None)
            renamed = _write_out_swish(function) | _resize_where_broadcast(function)
            for node in function.node_def:
                node.input[:] = [renamed.get(name, name) for name in node.input]
            for result, name in function.ret.items():
                function.ret[result] = renamed.get(name, name)
    file.write_bytes(saved.SerializeToString())


def _write_out_swish(function: FunctionDef) -> dict[str, str]:
    """SoftplusGrad(g, x) -> Mul(g, Sigmoid(x)); gives the old names of outputs and the new ones."""
    renamed = {}
    for node in [node for node in function.node_def if node.op == "SoftplusGrad"]:
        gradients, features, *control = node.input
        sigmoid = function.node_def.add(name=f"{node.name}/sigmoid", op="Sigmoid", input=[features])
        sigmoid.attr["T"].CopyFrom(node.attr["T"])
        renamed |= _replace(node, "Mul", [gradients, f"{sigmoid.name}:y:0", *control], "backprops", "z")
    return renamed


def _resize_where_broadcast(function: FunctionDef) -> dict[str, str]:
    """Reshape(BroadcastTo(x with new axes)) -> ResizeNearestNeighbor(x); gives the old names and the new ones."""
    nodes = {node.name: node for node in function.node_def}

    def first_input(node: NodeDef, operation: str, of_input: str) -> NodeDef | None:
        """The first input, `node:output:0`, of a node if the two are such operations."""
        given = nodes.get(node.input[0].partition(":")[0]) if node.op == operation else None
        return given if given is not None and given.op == of_input else None

    renamed = {}
    for node in list(function.node_def):
        broadcast = first_input(node, "Reshape", "BroadcastTo")
        sliced = broadcast and first_input(broadcast, "BroadcastTo", "StridedSlice")
        if sliced is None or sliced.attr["new_axis_mask"].i != _DOUBLING_AXES:
            continue
        _, height, width, _ = tf.make_ndarray(nodes[node.input[1].partition(":")[0]].attr["value"].tensor)
        size = function.node_def.add(name=f"{node.name}/size", op="Const")
        size.attr["dtype"].type = tf.int32.as_datatype_enum
        size.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.int32([height, width])))
        inputs = [sliced.input[0], f"{size.name}:output:0"]
        renamed |= _replace(node, "ResizeNearestNeighbor", inputs, "output", "resized_images")
    return renamed


def _replace(node: NodeDef, operation: str, inputs: list[str], output: str, new_output: str) -> dict[str, str]:
    """Makes another operation of a node; of its attributes only the type stays."""
    node.CopyFrom(NodeDef(name=node.name, op=operation, input=inputs, attr={"T": node.attr["T"]}))
    return {f"{node.name}:{output}:0": f"{node.name}:{new_output}:0"}


def with_metadata(content: bytes, metadata: dict[str, Any]) -> bytes:
    """Adds metadata, which JSON can hold, to a .tflite model without them."""
    model = schema.ModelT.InitFromPackedBuf(content)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the metadata of an exported .tflite file; raises ValueError for a file of another kind."""
    content = pathlib.Path(path).read_bytes()
    try:
        if content[4:8] != _FILE_IDENTIFIER:
            raise ValueError("no such content")
        model = schema.Model.GetRootAs(content)
        entries = [model.Metadata(index) for index in range(model.MetadataLength())]
        buffers = [entry.Buffer() for entry in entries if entry.Name() == METADATA_NAME.encode()]
        texts = [model.Buffers(buffer).DataAsNumpy().tobytes() for buffer in buffers]
    # For a truncated file the flatbuffers package raises errors of many kinds.
    except Exception as error:
        raise ValueError(f"{path}: not a .tflite file, or damaged ({first_line(error)})") from error
    if not texts:
        raise ValueError(f"{path}: has no metadata called {METADATA_NAME!r}; nvae-export-tflite has not written it")
    return json.loads(texts[0])


def foreign_operations(content: bytes) -> list[str]:
    """The operations of a .tflite model that are no builtins: Flex ones of TensorFlow, and custom ones."""
    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(index).CustomCode() for index in range(model.OperatorCodesLength())]
    return sorted({code.decode() for code in codes if code})
