"""Writes a model as ONNX files of standard operations, which are first run where TensorFlow can't be imported."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.errors import require, standard_error_into, wrap_read_errors
from nvae_tf.files import atomic_folder, check_new_folder
from nvae_tf.layers.cpu_kernels import plain_operations
from nvae_tf.models import NVAE
from nvae_tf.serving.device_signatures import DeviceSignatures, device_inputs, file_facts, folded_signatures
from nvae_tf.serving.signatures import Tensors
from nvae_tf.serving.verification import DIVERGED, TOLERANCE, Arrays, all_differences, run_alone

onnx, tf2onnx, _ = (require(module, "onnx") for module in ("onnx", "tf2onnx", "onnxruntime"))

ONNX_SIGNATURES = ("sample", "decode", "encode", "reconstruct", "score")
OPSET = 18
# How many nats scores may differ by; where float32 has no such digits, by a part of the largest.
SCORE_TOLERANCE, SCORE_ROUNDING = 1e-4, 2e-6


class OnnxSignatures(DeviceSignatures):
    """The signatures of ONNX files, a method for each of `ONNX_SIGNATURES`: of any number of rows."""

    rows = None

    def reconstruct(self, image: tf.Tensor, noise: tf.Tensor, label: tf.Tensor | None = None) -> Tensors:
        """Reconstructs images as `reconstruction`: in ONNX an output can't have the name of an input."""
        return {"reconstruction": super().reconstruct(image, noise, label)["image"]}

    def score(self, image: tf.Tensor, noise: tf.Tensor, label: tf.Tensor | None = None) -> Tensors:
        """Scores images at the latents that `encode` draws with the same inputs: the outputs of `Signatures.score`."""
        return self._scores(image, self._inferred(image, noise, label).elbo(image))


def export_onnx(model: NVAE, output: pathlib.Path, source: Mapping[str, Any] | None = None) -> None:
    """Writes `output`, a new folder with NAME.onnx for each of `ONNX_SIGNATURES`.

    Metadata of the files are the settings, the latents' layout and the origin, as JSON. Before the folder appears
    onnxruntime runs the files in a process that can import neither TensorFlow nor this package. Raises ValueError, and
    writes nothing, where the folder is not new, ONNX lacks an operation, or a number differs from the model's.
    """
    with atomic_folder(output, lambda: check_new_folder(output, f"--output={output}")) as folder:
        folder.mkdir()
        inputs, expected = _record(OnnxSignatures(model))
        signatures = folded_signatures(model, kind=OnnxSignatures)
        for name in ONNX_SIGNATURES:
            onnx.save(_converted(signatures, name, source), folder / f"{name}.onnx")
        with wrap_read_errors("onnxruntime can't run the exported files (", ")"):
            differences = all_differences(run_alone("replay_onnx.py", inputs, folder.resolve()), expected)
        for name, difference in differences.items():
            in_nats, largest = name in ("score/nats", "score/kl_per_group"), np.abs(expected[name]).max()
            allowed = max(SCORE_TOLERANCE / max(largest, 1e-30), SCORE_ROUNDING) if in_nats else TOLERANCE
            if not difference <= allowed:
                reason = f"{name} is off by {difference:.1e} of its largest value, {allowed:.1e} is allowed"
                raise ValueError(f"the files do not give the model's numbers: {reason}")


def _record(signatures: OnnxSignatures) -> tuple[Arrays, Arrays]:
    """Returns inputs and the model's outputs, by `signature/name`; images are its own, on the levels of its data."""
    inputs, expected, images = {}, {}, None
    for name in ONNX_SIGNATURES:
        given = device_inputs(signatures, name, count=4, images=images, seed=1)
        if name in signatures.take_images:
            given["noise"][::2] = 0.0  # half of the rows at the means
        with tf.device("/CPU:0"):
            outputs = {key: value.numpy() for key, value in getattr(signatures, name)(**given).items()}
        if not all(np.isfinite(value).all() for value in outputs.values()):
            raise ValueError(DIVERGED.format(name))
        if name == "sample":
            levels = np.float32(2**signatures.model.config.num_bits - 1)
            images = np.rint(outputs["image"] * levels) / levels
        inputs |= {f"{name}/{key}": array for key, array in given.items()}
        expected |= {f"{name}/{key}": array for key, array in outputs.items()}
    return inputs, expected


def _converted(signatures: OnnxSignatures, name: str, source: Mapping[str, Any] | None) -> onnx.ModelProto:
    """Returns the ONNX model of a signature; ValueError where ONNX lacks one of its operations."""
    function, specs = tf.function(getattr(signatures, name), autograph=False), signatures.input_specs(name)
    # tf2onnx writes a line for each operation that it does not know.
    with wrap_read_errors(f"{name}: tf2onnx can't convert it (", ")"), standard_error_into([]), plain_operations():
        made, _ = tf2onnx.convert.from_function(function, specs, OPSET, custom_op_handlers=_HANDLERS)
    nodes = made.graph.node
    if lacking := sorted({node.op_type for node in nodes if node.domain or not onnx.defs.has(node.op_type, OPSET, "")}):
        fix = "write the model by nvae-export, or its likelihood and cells with other operations"
        raise ValueError(f"{name}: ONNX has no {', '.join(lacking)} of TensorFlow; {fix}")
    for tensor in (*made.graph.input, *made.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made.graph, opset_imports=opsets, ir_version=made.ir_version)
    facts = file_facts(signatures, name, source, "tf2onnx", "onnx", "onnxruntime")
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    return model


# What tf2onnx asks for operations that it does not know: each function changes a node of its graph.


def _product(_: Any, node: Any, *__: Any) -> None:
    node.type = "Mul"  # of finite numbers, as logits are, `MulNoNan` is the product


def _one_less_erf(graph: Any, node: Any, name: str, _: Any) -> None:
    one, erf = graph.make_const(f"{name}/one", np.float32(1.0)), graph.make_node("Erf", node.input)
    node.type = "Sub"
    graph.replace_inputs(node, [one.output[0], erf.output[0]])


def _shape_of_both(graph: Any, node: Any, *_: Any) -> None:
    first, second = (graph.make_node("Cast", [shape], {"to": onnx.TensorProto.INT64}).output[0] for shape in node.input)
    zeros = graph.make_node("ConstantOfShape", [first]).output[0]
    shape = graph.make_node("Shape", graph.make_node("Expand", [zeros, second]).output)
    node.type = "Cast"
    node.set_attr("to", onnx.TensorProto.INT32)
    graph.replace_inputs(node, shape.output)


_HANDLERS = {"MulNoNan": (_product, []), "Erfc": (_one_less_erf, []), "BroadcastArgs": (_shape_of_both, [])}
