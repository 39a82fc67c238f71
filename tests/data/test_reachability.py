"""Hosts that answer, refuse, can't be found or keep silent."""

import socket
import threading

import pytest

from nvae_tf.data import tfds
from nvae_tf.data.tfds import unreachable_hosts


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listening_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


def test_a_listening_host_is_reachable(listening_port):
    assert unreachable_hosts([f"http://127.0.0.1:{listening_port}/a", f"http://127.0.0.1:{listening_port}/b"]) == {}


def test_only_the_refusing_host_is_named(listening_port, closed_port):
    urls = [f"http://127.0.0.1:{listening_port}/a", f"https://127.0.0.1:{closed_port}/b"]
    causes = unreachable_hosts(urls)
    assert list(causes) == [f"127.0.0.1:{closed_port}"]
    assert "refused" in causes[f"127.0.0.1:{closed_port}"]


def test_a_silent_host_is_given_up(monkeypatch):
    silence = threading.Event()

    def keep_silent(*_, **__):
        silence.wait()
        raise OSError("too late")

    monkeypatch.setattr(tfds.socket, "create_connection", keep_silent)
    causes = unreachable_hosts(["https://data.example/x"], timeout_seconds=0.1)
    silence.set()
    assert causes == {"data.example:443": "no answer within 0.1 seconds"}


def test_a_proxy_is_tried_in_the_place_of_the_host(monkeypatch, listening_port, closed_port):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening_port}")
    assert unreachable_hosts(["https://data.invalid/x"]) == {}
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{closed_port}")
    assert list(unreachable_hosts(["https://data.invalid/x"])) == [f"127.0.0.1:{closed_port}"]


def test_nothing_to_reach():
    assert unreachable_hosts([]) == {}
