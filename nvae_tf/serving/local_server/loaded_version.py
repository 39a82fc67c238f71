"""One version of a model in memory, in a session of TensorFlow, as TensorFlow Serving loads it."""

import contextlib
import pathlib
import threading
from collections.abc import Collection, Iterator, Mapping

import grpc
import numpy as np

from nvae_tf.serving.clients.signature_specs import SignatureSpec, check_inputs, signature_specs
from nvae_tf.serving.local_server.batching import Batcher, Batching
from nvae_tf.serving.local_server.request_errors import RequestError, invalid

DEFAULT_SIGNATURE = "serving_default"
# Of a request: a message of a few bytes may claim millions of them.
LARGEST_ROWS = 1024


class LoadedVersion:
    """A version that runs its signatures, from many threads at once.

    Args:
      folder: the version's folder, with saved_model.pb in it.
      batching: how rows of several requests are run together; each request alone, if it is None.

    Raises:
      Exception: TensorFlow and protobuf raise many kinds for a damaged or foreign folder.
    """

    def __init__(self, folder: pathlib.Path, batching: Batching | None = None):
        import tensorflow as tf  # not before a version is loaded: a wrong argument is told within a moment

        self.number = int(folder.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            loaded = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
        except BaseException:
            self._session.close()
            raise
        self.definitions = dict(loaded.signature_def)
        self.specs = signature_specs(self.definitions)
        self._batcher = Batcher(self._run, batching) if batching else None
        self._idle = threading.Condition()
        self._users, self._retired = 0, False

    def run(
        self, signature: str, arrays: Mapping[str, np.ndarray], outputs: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          signature: its name; empty for `serving_default`.
          arrays: its inputs.
          outputs: which outputs are wanted; all, if none is named.

        Raises:
          RequestError: there is no such signature, or the inputs don't fit it.
          tf.errors.OpError: the graph refuses the values.
        """
        signature = signature or DEFAULT_SIGNATURE
        spec = self.spec(signature)
        try:
            check_inputs(arrays, spec)
        except ValueError as error:
            raise invalid(str(error)) from None
        for name in outputs:
            if name not in spec.outputs:
                raise invalid(f"output tensor alias not found in signature: {name}")
        rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
        if rows > LARGEST_ROWS:
            raise invalid(f"{rows:,} rows in a request; at most {LARGEST_ROWS:,} are taken")
        wanted = tuple(sorted(set(outputs) or spec.outputs))
        if self._batcher and _is_batch_first(spec):
            return self._batcher.run(signature, dict(arrays), wanted)
        return self._run(signature, arrays, wanted)

    def spec(self, signature: str) -> SignatureSpec:
        """The inputs and outputs of a signature.

        Raises:
          RequestError: there is none.
        """
        if signature not in self.specs:
            told = f'Serving signature key "{signature}" not found; the model has {", ".join(self.specs)}'
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, told)
        return self.specs[signature]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[bool]:
        """Keeps the session open while the block runs; gives False if it is too late for that."""
        with self._idle:
            usable = not self._retired
            self._users += usable
        try:
            yield usable
        finally:
            with self._idle:
                self._users -= usable
                self._idle.notify_all()

    def retire(self, seconds: float) -> None:
        """Closes the session when the requests that use it are done, after so many seconds at the latest."""
        with self._idle:
            self._retired = True
            self._idle.wait_for(lambda: not self._users, seconds)
        self._session.close()

    def _run(self, signature: str, arrays: Mapping[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        definition = self.definitions[signature]
        feed = {definition.inputs[name].name: array for name, array in arrays.items()}
        return self._session.run({name: definition.outputs[name].name for name in outputs}, feed)


def _is_batch_first(spec: SignatureSpec) -> bool:
    """Whether the first axis of all inputs and outputs is a batch of any size."""
    shapes = [found.shape for side in spec for found in side.values()]
    return bool(spec.inputs) and all(shape and shape[0] is None for shape in shapes)
