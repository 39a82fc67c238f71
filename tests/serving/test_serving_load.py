"""The load benchmark against the server of this process: metrics of real requests, and malformed ones refused."""

import itertools

import pytest

from benchmarks.exported_sampling import operations_of
from benchmarks.serving_load import MALFORMED, Requests, run_round, soak


@pytest.fixture
def made(local):
    requests = Requests(local.grpc, "tiny")
    yield requests
    requests.close()


def test_a_round_counts_what_was_answered(made):
    metrics = run_round(made.one_row("decode"), clients=2, seconds=0.2)
    assert metrics.clients == 2 and metrics.errors == 0
    assert metrics.requests_per_second > 1.0 and 0.0 < metrics.p50_ms <= metrics.p99_ms


def test_malformed_requests_are_refused_and_sound_ones_answered(made):
    memory = iter(range(100, 200))
    stood = soak(made, ("sample", "decode"), MALFORMED, 60, lambda: next(memory))
    assert stood.errors == 0 and stood.malformed == stood.refused == 6
    assert stood.memory_bytes == list(range(100, 110))


def test_errors_are_counted(made):
    # The first request is not counted, the others are refused.
    requests = itertools.chain([made.one_row("decode")], itertools.repeat(made.malformed("wrong size")))
    metrics = run_round(lambda: next(requests)(), clients=1, seconds=0.1)
    assert metrics.errors > 0 and metrics.requests_per_second == 0.0


def test_operations_are_those_of_the_calls(folder):
    # The same network with its pictures as files has the operations of that, and some more.
    assert operations_of(folder, "sample") < operations_of(folder, "sample_png") < 2 * operations_of(folder, "sample")
