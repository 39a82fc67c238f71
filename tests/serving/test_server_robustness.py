"""Ten thousand requests, valid and malformed ones, to the server for trials in a process of its own."""

import contextlib
import json
import re
import signal
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.command_fixtures import started_anew
from tests.serving.model_servers import PROTOCOLS, Servers

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
    "cut head": ([b"POST /v1/models/texts:predict HTT"], 0),
    "no HTTP": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], 400),
    # The server may refuse it before it has read all, and so reset the connection: no answer can be expected.
    "long head": ([b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"], "400|404|reset"),
    "odd length": ([post(b"", "-5")], 400),
    "two lengths": ([post(VALID, more="Content-Length: 3\r\n")], 400),
    "wrong type": ([predict([["a"]])], 400),
    "wrong shape": ([predict([[[1.0]]])], 400),
    "too large": ([predict([[1000.0]])], 400),
    "deep": ([post(b'{"inputs": ' + b"[" * 200_000)], 400),
    "wide": ([post(b'{"signature_name": "twice", "inputs": [' + b"[]," * 50_000 + b"[]]}")], 400),
    "coded": ([post(VALID, path="/v1/models/%2e%2e%2f%00:predict")], 404),
    "slow": ([post(VALID)[:20], post(VALID)[20:60]], 0),
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


@pytest.mark.slow
def test_ten_thousand_mixed_requests_do_the_server_no_harm(texts_folder, tmp_path):
    flags = [f"--path={texts_folder.parent}", "--model=texts", "--port=0", "--rest_port=0"]
    log, memory, wrong = tmp_path / "log", [], list(MALFORMED.values())
    with log.open("w") as errors, started_anew(["-m", "export.serve", *flags], stderr=errors) as process:
        try:
            ports = re.findall(r":(\d+)", process.stdout.readline())
            servers = Servers(*(f"127.0.0.1:{port}" for port in ports))
            clients = [servers.client(protocol, "texts", timeout=60.0) for protocol in PROTOCOLS]

            def ask(number):
                if number % 3 == 0:
                    send(int(ports[1]), *wrong[number // 3 % len(wrong)])
                else:
                    answer = clients[number % 2].predict("twice", value=[[1.5, 2.0]])
                    assert answer["value"].tolist() == [[3.0, 4.0]]

            with ThreadPoolExecutor(THREADS) as pool:
                for number, _ in enumerate(pool.map(ask, range(REQUESTS)), 1):
                    if number % (REQUESTS // 10) == 0:
                        memory.append(psutil.Process(process.pid).memory_info().rss)
            ask(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    print("MiB after each tenth:", [size // 2**20 for size in memory])
    assert memory[-1] - memory[2] < 64 * 2**20
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
