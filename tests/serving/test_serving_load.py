import itertools

import pytest

from benchmarks.alternatives import operations_of
from benchmarks.serving_load import MALFORMED, Requests, run_round, soak


@pytest.fixture
def made(local):
    requests = Requests(local.grpc, "tiny")
    yield requests
    requests.close()


def test_a_round_counts_answers_and_errors(made):
    answered = run_round(made.one_row("decode"), clients=2, seconds=0.2)
    assert answered["clients"] == 2 and answered["errors"] == 0
    assert answered["requests_per_second"] > 1.0 and 0.0 < answered["p50_ms"] <= answered["p99_ms"]
    # All but the first, which is not counted.
    requests = itertools.chain([made.one_row("decode")], itertools.repeat(made.malformed("wrong size")))
    refused = run_round(lambda: next(requests)(), clients=1, seconds=0.1)
    assert refused["errors"] > 0 and refused["requests_per_second"] == 0.0


def test_malformed_requests_are_refused_and_sound_ones_answered(made):
    memory = iter(range(100, 200))
    stood = soak(made, ("sample", "decode"), MALFORMED, 60, lambda: next(memory))
    assert stood["errors"] == 0 and stood["malformed"] == stood["refused"] == 6
    assert stood["memory_bytes"] == list(range(100, 110))


def test_operations_are_those_of_the_calls(folder):
    # The same network with its pictures as files has the operations of that, and some more.
    assert operations_of(folder, "sample") < operations_of(folder, "sample_png") < 2 * operations_of(folder, "sample")
