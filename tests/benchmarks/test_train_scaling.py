import functools
import math
import sys

import pytest

from benchmarks import results, train_scaling
from benchmarks.all import Measured
from benchmarks.train_scaling import LastingWorker, Variant, rows_of, take_turns

ONE, TWO = Variant(1, "none", 1), Variant(2, "none", 1)
SUMMARY = dict(peak_memory_bytes=3e9, gpu_peak_bytes=[], first_step_seconds=6.0, graph_nodes=12_345, skipped_steps=0.0)


def measured(*turns, **changes):
    return Measured(list(turns), SUMMARY | changes)


def test_rows_are_replicas_times_recomputation_and_then_microbatches():
    rows = train_scaling.variants([2, 4], ["none", "all"], [1, 2])
    assert rows == [(2, "none", 1), (2, "all", 1), (4, "none", 1), (4, "all", 1), (2, "none", 2)]
    assert train_scaling.parse_arguments([]).batch_size == 128
    assert train_scaling.parse_arguments(["--batch_size=6"]).accumulate_steps == [1, 2]
    for wanted, gpus, chosen in ((None, 0, [1, 2]), (None, 1, [1]), (None, 6, [1, 2, 4, 6]), ([3], 0, [3])):
        assert train_scaling.chosen_numbers(wanted, gpus) == chosen
    with pytest.raises(ValueError, match="--replicas=4: there are 2 GPUs"):
        train_scaling.chosen_numbers([1, 4], 2)


def test_rows_have_medians_the_fullest_gpu_the_efficiency_of_their_kind_and_failures():
    alone = [
        measured(seconds, first_step_seconds=first, peak_memory_bytes=peak)
        for seconds, first, peak in ((1.0, 5.0, 4e9), (5.0, 30.0, 5e9), (9.0, 6.0, 3e9))
    ]
    of_all, killed = ONE._replace(recompute="all"), TWO._replace(recompute="all")
    found = {ONE: alone, of_all: [measured(0.4)], TWO: [measured(10.0, gpu_peak_bytes=[5e9, 7e9])]}
    found[killed] = [Measured([math.nan], {"failure": "Killed."})]
    rows = rows_of(found, 8)
    row, other, both, _ = rows
    assert (row["step_seconds"], row["every_step_seconds"]) == (5.0, [1.0, 5.0, 9.0])
    assert (row["first_step_seconds"], row["peak_memory_bytes"]) == (6.0, 5e9)
    assert [each["images_per_second"] for each in (row, other, both)] == pytest.approx([1.6, 20, 1.6])
    assert [each["efficiency"] for each in (row, other, both)] == pytest.approx([1.0, 1.0, 0.5])
    assert both["peak_memory_bytes"] == 7e9
    lines = results.text({"gpus": [], "rows": rows}).splitlines()
    assert lines[-1].startswith("| 2 | all | 1 | 16 | Killed. |") and len({line.count("|") for line in lines[2:]}) == 1


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_that_ends_leaves_the_others_their_turns(alone, capsys):
    started = []

    def toy(variant):
        started.append(variant)
        step = "raise MemoryError('the GPU is full')" if variant == ONE else "return 0.5"
        program = f"from benchmarks import workloads\ndef step():\n    {step}\nworkloads.serve(step, dict)"
        return LastingWorker("toy", [sys.executable, "-c", program])

    found = take_turns({variant: functools.partial(toy, variant) for variant in (ONE, TWO)}, 3, alone)
    assert sum((part.seconds for part in found[TWO]), []) == [0.5] * 3
    assert len(found[ONE]) == 1 and "the GPU is full" in found[ONE][0].summary["failure"]
    assert capsys.readouterr().err.count("the GPU is full") == 1
    assert started == [ONE, TWO] + ([TWO, TWO] if alone else [])
