"""Ten thousand requests, valid and malformed ones, to the server for trials in a process of its own."""

import contextlib
import itertools
import json
import re
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from nvae_tf.serving.client import ServedModel
from tests.command_fixtures import started_anew

REQUESTS, THREADS = 10_000, 16
VALID = json.dumps({"signature_name": "twice", "inputs": [[1.5, 2.0]]}).encode()


def post(body, length=None, path="/v1/models/texts:predict"):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


# What is sent, and the status of the answer; 0 where the connection is broken off instead.
MALFORMED = [
    (post(VALID, len(VALID) + 10), "0"),
    (b"POST /v1/models/texts:predict HTT", "0"),
    (post(VALID), "0"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
    # The server may refuse it before it has read all, and so reset the connection: no answer can be expected.
    (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400|404|reset"),
    (post(b"", "-5"), "400"),
    (post(b'{"inputs": ' + b"[" * 200_000), "400"),
    (post(b'{"signature_name": "twice", "inputs": [' + b"[]," * 5_000 + b"[]]}"), "400"),
    (post(b"\xff\xfe{"), "400"),
    (post(VALID, path="/v1/models/%2e%2e%2f%00:predict"), "404"),
]


def send(port, content, status):
    may_be_reset = contextlib.suppress(ConnectionError) if "reset" in status else contextlib.nullcontext()
    with may_be_reset, socket.create_connection(("127.0.0.1", port), timeout=30.0) as connection:
        connection.sendall(content)
        if status == "0":  # broken off, not ended
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            assert re.match(rf"HTTP/1.1 ({status}) ".encode(), connection.recv(2**16))


@pytest.mark.slow
def test_ten_thousand_mixed_requests_do_the_server_no_harm(texts_folder, tmp_path):
    flags = [f"--path={texts_folder.parent}", "--model=texts", "--port=0", "--rest_port=0"]
    log, memory, wrong = tmp_path / "log", [], itertools.cycle(MALFORMED)
    with log.open("w") as errors, started_anew(["-m", "export.serve", *flags], stderr=errors) as process:
        try:
            grpc_port, rest_port = (int(port) for port in re.findall(r":(\d+)", process.stdout.readline()))
            urls = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{rest_port}"
            clients = [ServedModel(url, "texts", timeout=30.0) for url in urls]

            def ask(number):
                if number % 10 in (3, 6, 9):
                    return send(rest_port, *next(wrong))
                assert clients[number % 2].predict("twice", value=[[1.5, 2.0]])["value"].tolist() == [[3.0, 4.0]]

            with ThreadPoolExecutor(THREADS) as pool:
                for number, _ in enumerate(pool.map(ask, range(REQUESTS)), 1):
                    if number % (REQUESTS // 10) == 0:
                        memory.append(psutil.Process(process.pid).memory_info().rss)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    assert memory[-1] - memory[2] < 64 * 2**20, memory
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
