"""Both interfaces of the server together: start, ports, end."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from nvae_tf.serving.clients.serving_messages import model_service_pb2_grpc, prediction_service_pb2_grpc
from nvae_tf.serving.local_server.grpc_service import ModelService, PredictionService
from nvae_tf.serving.local_server.rest_service import RestServer
from nvae_tf.serving.local_server.served_versions import ServedVersions

_MESSAGE_BYTES = 64 * 2**20


class LocalServer:
    """Serves models over gRPC and REST; as a context manager from its first line to its last.

    Args:
      models: the models.
      port: of gRPC; 0 picks a free one.
      rest_port: of REST; 0 picks a free one.
      host: the address to listen at; `0.0.0.0` for all of the machine's.
      max_message_bytes: the largest request or gRPC answer.
      threads: how many gRPC requests run or wait for others at once.

    Attributes:
      port: of gRPC.
      rest_port: of REST.

    Raises:
      OSError: a port is taken.
    """

    def __init__(
        self,
        models: Sequence[ServedVersions],
        port: int = 0,
        rest_port: int = 0,
        host: str = "127.0.0.1",
        max_message_bytes: int = _MESSAGE_BYTES,
        threads: int = 32,
    ):
        self._models = {versions.name: versions for versions in models}
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Otherwise a second server on the same port would quietly get half of the requests.
            ("grpc.so_reuseport", 0),
        ]
        self._grpc = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._models, max_message_bytes), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._models), self._grpc)
        try:
            self.port = self._grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise OSError(f"port {port} of {host} can't be had; is it taken?") from None
        try:
            self._rest = RestServer((host, rest_port), self._models, max_message_bytes)
        except OSError as error:
            self._grpc.stop(None)
            raise OSError(f"port {rest_port} of {host} can't be had ({error})") from None
        self.rest_port = self._rest.server_address[1]
        self._rest_thread = threading.Thread(target=self._rest.serve_forever, args=(0.1,), name="rest", daemon=True)

    def start(self) -> None:
        """Answers from now on; requests for a model that is still being loaded get UNAVAILABLE."""
        for versions in self._models.values():
            versions.start()
        self._grpc.start()
        self._rest_thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Ends; requests in flight have so many seconds to finish."""
        ended = self._grpc.stop(seconds)
        self._rest.shutdown()
        self._rest.server_close()
        ended.wait()
        for versions in self._models.values():
            versions.stop()

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
