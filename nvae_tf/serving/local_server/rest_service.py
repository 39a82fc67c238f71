"""TensorFlow Serving's REST interface on the standard library's HTTP server."""

import json
import re
import socket
import sys
import traceback
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format

from nvae_tf.serving.clients.serving_messages import get_model_metadata_pb2
from nvae_tf.serving.local_server.grpc_service import SIGNATURE_DEF, Models, model_named, status_message
from nvae_tf.serving.local_server.request_errors import RequestError, invalid, request_error
from nvae_tf.serving.local_server.rest_requests import answer_to, read_request

# Seconds after which a connection that says nothing is closed.
_IDLE_SECONDS = 120
_MOST_DISCARDED, _PIECE = 2**30, 2**16
_CODE = grpc.StatusCode
_HTTP = {
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.FAILED_PRECONDITION: 400,
    _CODE.OUT_OF_RANGE: 400,
    _CODE.NOT_FOUND: 404,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.CANCELLED: 499,
    _CODE.UNIMPLEMENTED: 501,
    _CODE.UNAVAILABLE: 503,
    _CODE.DEADLINE_EXCEEDED: 504,
}
_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d{1,18})|/labels/([^/:]+))?(/metadata|:\w+)?")


class _Place(NamedTuple):
    """What the path of a request names."""

    model: str
    version: int | None
    label: str | None
    action: str


class RestServer(ThreadingHTTPServer):
    """Answers in threads, one for each connection.

    Args:
      address: host and port; port 0 picks a free one.
      models: the models by name.
      largest_bytes: the largest body of a request.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], models: Models, largest_bytes: int):
        self.models, self.largest_bytes = models, largest_bytes
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is nothing to tell; all else is, and the server goes on."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc(file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: RestServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:  # noqa: N802
        self._answer(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._answer(self._post)

    def log_message(self, *arguments) -> None:
        """One line for each request would hide what matters."""

    def _get(self) -> dict[str, Any]:
        place = self._place()
        versions = model_named(self.server.models, place.model)
        if not place.action:
            return _as_json(status_message(versions, place.version, place.label))
        if place.action != "/metadata":
            raise invalid(f"Malformed request: GET {self.path}")
        with versions.using(place.version, place.label) as version:
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.definitions)
            spec = {"name": place.model, "signature_name": "", "version": str(version.number)}
        return {"model_spec": spec, "metadata": {SIGNATURE_DEF: _as_json(signatures)}}

    def _post(self) -> dict[str, Any]:
        body = self._body()
        place = self._place()
        if place.action in (":classify", ":regress"):
            raise RequestError(_CODE.UNIMPLEMENTED, f"{place.action[1:]} is not offered by this server for trials")
        if place.action != ":predict":
            raise invalid(f"Malformed request: POST {self.path}")
        with model_named(self.server.models, place.model).using(place.version, place.label) as version:
            return answer_to(read_request(body), version)

    def _place(self) -> _Place:
        matched = _PATH.fullmatch(self.path.partition("?")[0])
        if not matched:
            raise invalid(f"Malformed request: {self.command} {self.path}")
        model, version, label, action = matched.groups()
        label = urllib.parse.unquote(label) if label else None
        return _Place(urllib.parse.unquote(model), int(version) if version else None, label, action or "")

    def _body(self) -> bytes:
        """Reads the body; where that is not done, the connection can't be used again."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise invalid("Malformed request: a body needs its Content-Length")
        if int(length) > self.server.largest_bytes:
            self._discard(int(length))
            told = f"a body of {int(length):,} bytes is over the limit of {self.server.largest_bytes:,}"
            raise RequestError(_CODE.RESOURCE_EXHAUSTED, told)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise invalid("Malformed request: the body ends early")
        return body

    def _discard(self, length: int) -> None:
        """Reads a body that is too long away: a client reads no answer before it has sent everything."""
        self.close_connection = True
        left = min(length, _MOST_DISCARDED)
        while left and (piece := self.rfile.read(min(left, _PIECE))):
            left -= len(piece)

    def _answer(self, answer: Callable[[], dict[str, Any]]) -> None:
        try:
            code, content = 200, json.dumps(answer()).encode()
        except (ConnectionError, TimeoutError):
            raise  # nobody is there to be answered
        except Exception as error:
            told = request_error(error)
            if told.code == _CODE.INTERNAL:
                traceback.print_exc(file=sys.stderr)
            code, content = _HTTP.get(told.code, 500), json.dumps({"error": str(told)}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _as_json(message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
