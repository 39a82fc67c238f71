"""Ten thousand requests, valid and malformed ones, to the server for trials in a process of its own."""

import contextlib
import itertools
import json
import re
import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.command_fixtures import started_anew

REQUESTS, THREADS = 10_000, 16
VALID = json.dumps({"signature_name": "twice", "inputs": [[1.5, 2.0]]}).encode()


def post(body, length=None, path="/v1/models/texts:predict", more=""):
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length or len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body


def predict(inputs):
    return post(json.dumps({"signature_name": "twice", "inputs": inputs}).encode())


# What is sent, piece by piece; the status of the answer, 0 where nobody waits for one.
MALFORMED = {
    "cut body": ([post(VALID, len(VALID) + 10)], 0),
    "cut head": ([b"POST /v1/models/texts:predict HTT"], 0),
    "no HTTP": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], 400),
    # The server may refuse it before it has read all, and so reset the connection: no answer can be expected.
    "long head": ([b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"], "400|404|reset"),
    "odd length": ([post(b"", "-5")], 400),
    "two lengths": ([post(VALID, more="Content-Length: 3\r\n")], 400),
    "wrong type": ([predict([["a"]])], 400),
    "wrong shape": ([predict([[[1.0]]])], 400),
    "uneven": ([predict([[1.0], [1.0, 2.0]])], 400),
    "too large": ([predict([[1000.0]])], 400),
    "null": ([predict(None)], 400),
    "deep": ([post(b'{"inputs": ' + b"[" * 200_000)], 400),
    "wide": ([post(b'{"signature_name": "twice", "inputs": [' + b"[]," * 50_000 + b"[]]}")], 400),
    "no JSON": ([post(b"\xff\xfe{")], 400),
    "upwards": ([post(VALID, path="/v1/models/../../../etc/passwd:predict")], 404),
    "outside": ([post(VALID, path="/../etc/passwd")], 404),
    "coded": ([post(VALID, path="/v1/models/%2e%2e%2f%00:predict")], 404),
    "slow": ([post(VALID)[:20], post(VALID)[20:60]], 0),
    "abort": ([post(VALID)], 0),
}


def send(port, pieces, status):
    """Sends a malformed request; checks its answer."""
    may_be_reset = contextlib.suppress(ConnectionError) if "reset" in str(status) else contextlib.nullcontext()
    with may_be_reset, socket.create_connection(("127.0.0.1", port), timeout=30.0) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05 if len(pieces) > 1 else 0.0)
        if status:
            received = b""
            while piece := connection.recv(2**16):
                received += piece
            assert re.match(rf"HTTP/1.1 ({status}) ".encode(), received), received
        else:  # broken off, not ended
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Client(threading.local):
    """What a thread asks with."""

    def __init__(self, port, rest_port):
        self.rest_port, self.session = rest_port, requests.Session()
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
        self.url = f"http://127.0.0.1:{rest_port}/v1/models/texts:predict"

    def by_rest(self):
        answer = self.session.post(self.url, data=VALID, timeout=30)
        assert (answer.status_code, answer.json()) == (200, {"outputs": [[3.0, 4.0]]})

    def by_grpc(self, dtype=np.float32):
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "texts", "twice"
        request.inputs["value"].CopyFrom(tf.make_tensor_proto(np.full([1, 2], 1.5, dtype)))
        return self.stub.Predict(request, timeout=30).outputs["value"].float_val[:] == [3.0, 3.0]

    def by_grpc_with_another_type(self):
        with pytest.raises(grpc.RpcError) as refused:
            self.by_grpc(np.float64)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
def test_ten_thousand_mixed_requests_do_the_server_no_harm(texts_folder, tmp_path):
    flags = [f"--path={texts_folder.parent}", "--model=texts", "--port=0", "--rest_port=0"]
    log, memory, wrong = tmp_path / "log", [], itertools.cycle(MALFORMED.values())
    with log.open("w") as errors, started_anew(["-m", "export.serve", *flags], stderr=errors) as process:
        try:
            ports = [int(port) for port in re.findall(r":(\d+)", process.stdout.readline())]
            client, server = Client(*ports), psutil.Process(process.pid)

            def malformed():
                send(ports[1], *next(wrong))

            def by_grpc():
                assert client.by_grpc()

            asks = [client.by_rest, client.by_rest, by_grpc, malformed, client.by_rest, by_grpc, malformed]
            asks += [client.by_rest, client.by_grpc_with_another_type, malformed]
            with ThreadPoolExecutor(THREADS) as pool:
                for number, _ in enumerate(pool.map(lambda number: asks[number % 10](), range(REQUESTS)), 1):
                    if number % (REQUESTS // 10) == 0:
                        memory.append(server.memory_info().rss)
            client.by_rest()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    print("MiB after each tenth:", [size // 2**20 for size in memory])
    assert memory[-1] - memory[2] < 64 * 2**20
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
