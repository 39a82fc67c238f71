import itertools

import pytest

from benchmarks.serving_load import requests_of, run_round, soak
from nvae_tf.serving.grpc_client import GrpcTransport


@pytest.fixture
def made(local):
    transport = GrpcTransport(local.grpc, "tiny", None, None)
    yield requests_of(transport)
    transport.close()


def test_a_round_counts_answers_and_errors(made):
    sound, malformed = made
    answered = run_round(sound["decode"], clients=2, seconds=0.2)
    assert answered["clients"] == 2 and answered["errors"] == 0
    assert answered["requests_per_second"] > 1.0 and 0.0 < answered["p50_ms"] <= answered["p99_ms"]
    # All but the first, which is not counted.
    requests = itertools.chain([sound["decode"]], itertools.repeat(malformed["wrong size"]))
    refused = run_round(lambda: next(requests)(), clients=1, seconds=0.1)
    assert refused["errors"] > 0 and refused["requests_per_second"] == 0.0


def test_malformed_requests_are_refused_and_sound_ones_answered(made):
    (sound, malformed), memory = made, iter(range(100, 200))
    stood = soak([sound["sample"], sound["decode"]], [*malformed.values()], 60, lambda: next(memory))
    assert stood["errors"] == 0 and stood["malformed"] == stood["refused"] == 6
    assert stood["memory_bytes"] == list(range(100, 110))
