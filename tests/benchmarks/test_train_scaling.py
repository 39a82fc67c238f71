import contextlib
import sys

import pytest

from benchmarks import train_scaling
from benchmarks.interleaved import Worker
from benchmarks.train_scaling import Record, Variant, rows_of, table

ONE, TWO = Variant(1, "none", 1), Variant(2, "none", 1)
SUMMARY = dict(peak_memory_bytes=3e9, gpu_peak_bytes=[], memory_before_first_step_bytes=1e9, trace_seconds=4.0)
SUMMARY |= dict(first_step_seconds=6.0, graph_nodes=12_345, skipped_steps=0.0)
MACHINE = {"processor": "P", "cores": 2, "load_average_at_start": 0.1, "memory_bytes": 8e9, "system": "L"}
RESULT = dict(preset="digits", batch_size=8, precision="float32", xla="auto", rounds=2, versions={}, date="2026")


def record(*turns, **changes):
    return Record([list(turn) for turn in turns], [SUMMARY | changes for _ in turns])


def table_of(records, gpus=()):
    return table(RESULT | {"rows": rows_of(records, 8), "machine": MACHINE | {"gpus": list(gpus)}})


def test_rows_are_replicas_times_recomputation_and_then_microbatches():
    rows = train_scaling.variants([2, 4], ["none", "all"], [1, 2])
    assert rows == [(2, "none", 1), (2, "all", 1), (4, "none", 1), (4, "all", 1), (2, "none", 2)]
    assert train_scaling.parse_arguments([]).batch_size == 128
    assert train_scaling.parse_arguments(["--batch_size=6"]).accumulate_steps == [1, 2]
    for wanted, gpus, chosen in ((None, 0, [1, 2]), (None, 1, [1]), (None, 6, [1, 2, 4, 6]), ([3], 0, [3])):
        assert train_scaling.chosen_numbers(wanted, gpus) == chosen
    with pytest.raises(ValueError, match="--replicas=4: there are 2 GPUs"):
        train_scaling.chosen_numbers([1, 4], 2)


def test_rows_have_medians_the_fullest_gpu_and_the_efficiency_of_their_kind():
    measured = ((5.0, 4e9), (30.0, 5e9), (6.0, 3e9))
    summaries = [SUMMARY | {"first_step_seconds": seconds, "peak_memory_bytes": peak} for seconds, peak in measured]
    turns = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]]
    of_all = ONE._replace(recompute="all")
    two = record([10.0], gpu_peak_bytes=[5e9, 7e9])
    row, alone, both = rows_of({ONE: Record(turns, summaries), of_all: record([0.4]), TWO: two}, 8)
    assert (row["step_seconds_10_percent"], row["step_seconds"], row["step_seconds_90_percent"]) == (1.0, 5.0, 9.0)
    assert row["every_step_seconds"] == turns and (row["first_step_seconds"], row["peak_memory_bytes"]) == (6.0, 5e9)
    assert [each["images_per_second"] for each in (row, alone, both)] == pytest.approx([1.6, 20, 1.6])
    assert [each["efficiency"] for each in (row, alone, both)] == pytest.approx([1.0, 1.0, 0.5])
    assert both["peak_memory_bytes"] == 7e9 and "| 32 | 3,000,000,000 | - |" in table_of({TWO: record([0.5])})


def test_the_table_explains_its_columns_and_has_failures_in_rows():
    records = {ONE: record([0.1]), TWO: record([0.2]), TWO._replace(recompute="all"): Record(failure="It was killed.")}
    on_cpu = table_of(records)
    lines = [line for line in on_cpu.splitlines() if line.startswith("|")]
    assert lines[3].startswith("| 2 | none | 1 | 16 | - | 4 | 6 | 1,000,000,000 | 12,345 | 0 | 0.2 | 0.2 | 0.2 | 80 |")
    assert lines[-1].startswith("| 2 | all | 1 | 16 | It was killed. |")
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "weak scaling" in on_cpu and "share the CPU's 2 cores" in on_cpu
    on_gpus = table_of(records, gpus=["Some GPU", "Some GPU"])
    assert "2 x Some GPU" in on_gpus and "piece by piece" in on_gpus and "share the CPU" not in on_gpus
    doubtful = {ONE: record([0.1, 0.1, 0.3]), TWO: record([0.1], skipped_steps=2.0)}
    uneven, skipped = train_scaling.doubts(rows_of(doubtful, 8))
    assert "replicas=1" in uneven and "uneven" in uneven and "2 steps were skipped" in skipped


def test_a_worker_that_ends_leaves_the_others_their_turns(capsys):
    def toy(step):
        program = f"from benchmarks import interleaved\ndef step():\n    {step}\ninterleaved.serve(step, dict)"
        return Worker("toy", [sys.executable, "-c", program])

    options = train_scaling.parse_arguments(["--rounds=3", "--seconds=0.01"])
    records = {ONE: Record(), TWO: Record()}
    with toy("raise MemoryError('the GPU is full')") as bad, toy("return 0.5") as good:
        workers = {ONE: bad, TWO: good}
        train_scaling.take_turns(records, lambda variant: contextlib.nullcontext(workers[variant]), options)
    assert len(records[TWO].turns) == 3 and set(sum(records[TWO].turns, [])) == {0.5}
    assert records[ONE].turns == [] and "the GPU is full" in records[ONE].failure
    assert capsys.readouterr().err.count("the GPU is full") == 1
