"""What is the REST client's own; test_serving_client.py has what both clients do."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from nvae_tf.serving.client import (
    BadRequest,
    DeadlineExceeded,
    Patience,
    RestClient,
    ServerFailed,
    ServerNotReady,
    TooLarge,
    array_of_json,
    json_of,
)
from nvae_tf.serving.grpc_client import ServingClient
from tests.serving.model_servers import IMAGES, QUICK, SEEDS, free_port

pytest_plugins = ("tests.serving.serving_fixtures",)
STATUS = {"model_version_status": [{"version": "4", "state": "AVAILABLE", "status": {"error_code": "OK"}}]}


@contextlib.contextmanager
def web_server(*answers, piece_seconds=0.0, port=0):
    """Gives one answer (code and text) after another, piece by piece, the last one for ever; and their count.

    Where the code is None the text is all of the answer, and the connection ends.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            code, text = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            if code is None:
                self.close_connection = True
                self.wfile.write(text.encode())
                return
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for letter in text if piece_seconds else [text]:
                    time.sleep(piece_seconds)
                    self.wfile.write(letter.encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


def test_503_is_tried_again():
    with web_server((503, '{"error": "loading"}'), (200, json.dumps(STATUS))) as (server, asked):
        with RestClient(server, "digits", patience=QUICK) as client:
            assert client.model_status() == [(4, "AVAILABLE", "")]
    assert asked == ["/v1/models/digits"] * 2


@pytest.mark.parametrize(
    "code, text, kind, message",
    [
        (400, '{"error": "no such thing"}', BadRequest, "no such thing [HTTP 400]"),
        (429, '{"error": "too long"}', TooLarge, "send fewer rows"),
        (500, '{"error": "crashed"}', ServerFailed, "crashed [HTTP 500]"),
        (404, "<html>Not here</html>", ServerFailed, "is this its REST port?"),
        (200, "<html>Hello</html>", ServerFailed, "is this its REST port?"),
        (200, "{}", ServerFailed, "no status of a model"),
    ],
)
def test_other_errors_are_told_at_once(code, text, kind, message):
    with web_server((code, text)) as (server, asked), RestClient(server, "digits", patience=QUICK) as client:
        with pytest.raises(kind) as told:
            client.model_status()
    assert message in str(told.value) and "\n" not in str(told.value)
    assert len(asked) == 1


def test_nobody_there_is_tried_again_and_told():
    server = f"127.0.0.1:{free_port()}"
    with RestClient(server, "digits", patience=QUICK) as client, pytest.raises(ServerNotReady) as told:
        client.model_status()
    assert str(told.value).startswith(f"{server}, model 'digits': nobody answers there; is it running")
    assert "tried 3 times" in str(told.value)


@pytest.mark.parametrize("part", ["", "HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{"])
def test_a_connection_that_breaks_is_tried_again_and_told(part):
    with web_server((None, part)) as (server, asked), RestClient(server, "digits", patience=QUICK) as client:
        with pytest.raises(ServerNotReady, match="broke before there was an answer; has the server ended"):
            client.model_status()
    assert len(asked) == 3


def test_an_answer_that_trickles_in_ends_at_the_deadline():
    text = json.dumps(STATUS)
    with web_server((200, text), piece_seconds=0.05) as (server, asked):
        began = time.monotonic()
        with RestClient(server, "digits", patience=Patience(request=0.2)) as client:
            with pytest.raises(DeadlineExceeded, match="no answer within 0.2 s"):
                client.model_status()
        assert time.monotonic() - began < 1.0 and len(asked) == 1


def test_rest_and_grpc_give_the_same_numbers(servers):
    with servers.client("rest") as rest, servers.client("grpc") as grpc:
        found, expected = (client.predict("score", image=IMAGES, seed=SEEDS) for client in (rest, grpc))
        assert rest.signatures() == grpc.signatures()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6)


def test_names_are_quoted_and_a_url_is_taken_as_it_is():
    assert RestClient("https://host/serving/", "a b", label="x/y")._url == (
        "https://host/serving/v1/models/a%20b/labels/x%2Fy"
    )
    with pytest.raises(ValueError, match="http:// is for the REST client"):
        ServingClient("http://host:1", "digits")


@pytest.mark.parametrize(
    "value, dtype, message",
    [
        ([[1, 2], [3]], "int32", "different lengths"),
        ([1, [2]], "int32", "different lengths"),
        ([[1], 2], "int32", "different lengths"),
        ([1.5], "int64", "a float where int64 is wanted"),
        ([True], "float32", "a bool where float32 is wanted"),
        (["1"], "float32", "a str where float32 is wanted"),
        ([300], "uint8", "a number that uint8 can't hold"),
        ([2**63], "int64", "a number that int64 can't hold"),
        ([{"b64": "?"}], "string", "no base64"),
        ([1], "string", "a int where a string"),
    ],
)
def test_json_that_is_no_array_is_told(value, dtype, message):
    with pytest.raises(ValueError, match=message):
        array_of_json(value, dtype)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_json_keeps_every_number(dtype):
    array = np.array([[0, 1], [2, 3]]).astype(dtype)
    if dtype == "float32":
        array = np.float32([[0.1, 1e-40], [3.4e38, -1 / 3]])
    found = array_of_json(json.loads(json.dumps(json_of(array))), dtype)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
