"""The official messages and stubs of TensorFlow Serving, without starting TensorFlow.

`tensorflow_serving.apis` (package tensorflow-serving-api) imports, besides grpc and protobuf, generated messages of
the package tensorflow alone: `tensorflow.core.*_pb2`. They are plain Python, but whoever imports them runs
`tensorflow/__init__.py` first, seconds and hundreds of MB for classes of some KB. So while they are imported, an empty
module stands where TensorFlow would. The package tensorflow must be installed, it is not started: the import takes
0.1 s instead of 2.9 s. A program that imports TensorFlow itself, before or after this, gets all of it, and the
same message classes; only at the moment of this import no other thread should import TensorFlow.
"""

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _messages_of_tensorflow_alone() -> Iterator[None]:
    """Lets `tensorflow.core` be imported without `tensorflow/__init__.py`."""
    found = None if "tensorflow" in sys.modules else importlib.util.find_spec("tensorflow")
    if found is None:  # it runs already, or is missing, which the import tells
        yield
        return
    empty = types.ModuleType("tensorflow")
    empty.__path__ = list(found.submodule_search_locations)
    sys.modules["tensorflow"] = empty
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


with _messages_of_tensorflow_alone():
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorflow.core.protobuf import error_codes_pb2, meta_graph_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

__all__ = [
    "error_codes_pb2",
    "get_model_metadata_pb2",
    "get_model_status_pb2",
    "meta_graph_pb2",
    "model_pb2",
    "model_service_pb2_grpc",
    "predict_pb2",
    "prediction_service_pb2_grpc",
    "tensor_pb2",
    "tensor_shape_pb2",
    "types_pb2",
]
