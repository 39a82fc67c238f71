"""What travels inside a .tflite file: a JSON text in an entry of its metadata, beside the graph."""

import json
import os
import pathlib
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nvae_tf.errors import first_line

METADATA_NAME = "nvae_tf"
_FILE_IDENTIFIER = b"TFL3"


def with_metadata(content: bytes, metadata: dict[str, Any]) -> bytes:
    """A .tflite model with the metadata in it.

    Args:
      content: the model, without such metadata.
      metadata: what JSON can hold.
    """
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
    """The metadata of an exported .tflite file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no .tflite file, or one that this package has not written.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        if content[4:8] != _FILE_IDENTIFIER:
            raise ValueError("no such content")
        model = schema.Model.GetRootAs(content)
        entries = [model.Metadata(index) for index in range(model.MetadataLength())]
        buffers = [entry.Buffer() for entry in entries if entry.Name() == METADATA_NAME.encode()]
        texts = [model.Buffers(buffer).DataAsNumpy().tobytes() for buffer in buffers]
    # Of a cut file the flatbuffers package raises errors of many kinds.
    except Exception as error:
        raise ValueError(f"{path}: not a .tflite file, or damaged ({first_line(error)})") from error
    if not texts:
        raise ValueError(f"{path}: has no metadata called {METADATA_NAME!r}; export.export_tflite has not written it")
    return json.loads(texts[0])


def foreign_operations(content: bytes) -> list[str]:
    """The operations of a .tflite model that are no builtins: Flex ones of TensorFlow, and custom ones."""
    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    return sorted({code.CustomCode().decode() for code in codes if code.CustomCode()})
