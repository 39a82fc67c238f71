import sys

import pytest

from benchmarks import results, train_scaling
from benchmarks.train_scaling import Record, Variant, rows_of
from benchmarks.workloads import Worker

ONE, TWO = Variant(1, "none", 1), Variant(2, "none", 1)
SUMMARY = dict(peak_memory_bytes=3e9, gpu_peak_bytes=[], memory_before_first_step_bytes=1e9, trace_seconds=4.0)
SUMMARY |= dict(first_step_seconds=6.0, graph_nodes=12_345, skipped_steps=0.0)


def record(*turns, **changes):
    return Record([list(turn) for turn in turns], [SUMMARY | changes for _ in turns], [])


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
    measured = ((5.0, 4e9), (30.0, 5e9), (6.0, 3e9))
    summaries = [SUMMARY | {"first_step_seconds": seconds, "peak_memory_bytes": peak} for seconds, peak in measured]
    turns = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]]
    of_all, killed = ONE._replace(recompute="all"), TWO._replace(recompute="all")
    two = record([10.0], gpu_peak_bytes=[5e9, 7e9])
    records = {ONE: Record(turns, summaries, []), of_all: record([0.4]), TWO: two, killed: Record([], [], ["Killed."])}
    row, alone, both, _ = rows_of(records, 8)
    assert (row["step_seconds_10_percent"], row["step_seconds"], row["step_seconds_90_percent"]) == (1.0, 5.0, 9.0)
    assert row["every_step_seconds"] == turns and (row["first_step_seconds"], row["peak_memory_bytes"]) == (6.0, 5e9)
    assert [each["images_per_second"] for each in (row, alone, both)] == pytest.approx([1.6, 20, 1.6])
    assert [each["efficiency"] for each in (row, alone, both)] == pytest.approx([1.0, 1.0, 0.5])
    assert both["peak_memory_bytes"] == 7e9
    lines = results.text({"gpus": [], "rows": rows_of(records, 8)}).splitlines()
    assert lines[-1].startswith("| 2 | all | 1 | 16 | Killed. |") and len({line.count("|") for line in lines[2:]}) == 1


def test_processes_that_do_not_fit_side_by_side_are_refused(free_memory):
    program = "from benchmarks import workloads\nworkloads.serve(lambda: 0.5, dict)"
    for size, arguments in ((1000, ["--alone"]), (1e12, [])):
        free_memory(size)
        options = train_scaling.parse_arguments(["--rounds=1", "--seconds=0.01", *arguments])
        train_scaling.take_turns([ONE, TWO], lambda _: Worker("toy", [sys.executable, "-c", program]), options)
    free_memory(1000)
    options.alone = False
    with pytest.raises(ValueError, match="1 of 2 processes take .* of 1,000 bytes, and one more: take a smaller"):
        train_scaling.take_turns([ONE, TWO], lambda _: Worker("toy", [sys.executable, "-c", program]), options)


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_that_ends_leaves_the_others_their_turns(alone, capsys):
    started = []

    def toy(variant):
        started.append(variant)
        step = "raise MemoryError('the GPU is full')" if variant == ONE else "return 0.5"
        program = f"from benchmarks import workloads\ndef step():\n    {step}\nworkloads.serve(step, dict)"
        return Worker("toy", [sys.executable, "-c", program])

    options = train_scaling.parse_arguments(["--rounds=3", "--seconds=0.01", *(["--alone"] if alone else [])])
    records = train_scaling.take_turns([ONE, TWO], toy, options)
    assert len(records[TWO].turns) == 3 and set(sum(records[TWO].turns, [])) == {0.5}
    assert records[ONE].turns == [] and "the GPU is full" in records[ONE].failures[0]
    assert capsys.readouterr().err.count("the GPU is full") == 1
    assert started == [ONE, TWO] + ([TWO, TWO] if alone else [])
