"""The rows of `benchmarks.train_scaling`, their figures and table, wrong arguments, and a real run of a small model."""

import contextlib
import json
import sys

import pytest

from benchmarks import train_scaling
from benchmarks.interleaved import Worker, WorkerEnded
from benchmarks.train_scaling import chosen_numbers, parse_arguments, take_turns, variants
from benchmarks.train_scaling_table import Record, Variant, doubts, figures, table

ONE, TWO = Variant(1, "none", 1), Variant(2, "none", 1)
SUMMARY = {
    "peak_memory_bytes": 3e9,
    "gpu_peak_bytes": [],
    "memory_before_first_step_bytes": 1e9,
    "trace_seconds": 4.0,
    "first_step_seconds": 6.0,
    "graph_nodes": 12_345,
    "refused_steps": 0.0,
    "versions": {"tensorflow": "2"},
}
MACHINE = {"processor": "P", "cores": 2, "load_average_at_start": 0.1, "gpus": []}
OPTIONS = {"preset": "digits", "batch_size": 8, "precision": "float32", "xla": "auto", "rounds": 2, "alone": False}


def record(*turns, **changes):
    return Record([list(turn) for turn in turns], [SUMMARY | changes for _ in turns])


def result_of(records, **changes):
    return OPTIONS | figures(records, OPTIONS["batch_size"]) | {"machine": MACHINE | changes}


def test_rows_are_replicas_times_recomputation_and_then_parts():
    assert variants([2, 4], ["none", "all"], [1, 2]) == [
        (2, "none", 1),
        (2, "all", 1),
        (4, "none", 1),
        (4, "all", 1),
        (2, "none", 2),
    ]


@pytest.mark.parametrize(
    ("wanted", "gpus", "chosen"),
    [(None, 0, [1, 2]), (None, 1, [1]), (None, 6, [1, 2, 4, 6]), (None, 8, [1, 2, 4, 8]), ([3], 4, [3]), ([3], 0, [3])],
)
def test_numbers_of_replicas_follow_the_devices(wanted, gpus, chosen):
    assert chosen_numbers(wanted, gpus) == chosen


def test_more_replicas_than_gpus_are_refused():
    with pytest.raises(ValueError, match="--replicas=4: there are 2 GPUs"):
        chosen_numbers([1, 4], 2)


def test_efficiency_compares_with_one_replica_of_the_same_kind():
    all_of_one, all_of_two = ONE._replace(recompute="all"), TWO._replace(recompute="all")
    records = {ONE: record([0.1, 0.1]), all_of_one: record([0.4]), TWO: record([0.25, 0.25]), all_of_two: record([0.4])}
    rows = {(row["replicas"], row["recompute"]): row for row in figures(records, 8)["rows"]}
    assert rows[1, "none"]["images_per_second"] == pytest.approx(80)
    assert rows[2, "none"]["images_per_second"] == pytest.approx(64)
    assert [row["efficiency"] for row in rows.values()] == pytest.approx([1.0, 1.0, 0.4, 1.0])


def test_without_a_row_of_one_replica_there_is_no_efficiency():
    result = result_of({TWO: record([0.5])})
    assert result["rows"][0]["efficiency"] is None
    assert "| 32.0 | - |" in table(result)


def test_a_row_has_the_median_of_all_turns_and_what_lies_around_it():
    (row,) = figures({ONE: record([float(n) for n in range(6)], [float(n) for n in range(6, 11)])}, 8)["rows"]
    assert (row["step_seconds_10_percent"], row["step_seconds"], row["step_seconds_90_percent"]) == (1.0, 5.0, 9.0)
    assert row["every_step_seconds"][1] == [6.0, 7.0, 8.0, 9.0, 10.0]


def test_memory_is_that_of_the_fullest_gpu_where_there_are_any():
    records = {ONE: record([1.0]), TWO: record([1.0], gpu_peak_bytes=[5e9, 7e9])}
    assert [row["peak_memory_bytes"] for row in figures(records, 8)["rows"]] == [3e9, 7e9]


def test_the_first_step_of_processes_that_are_started_anew_is_their_median():
    told = ((5.0, 4e9), (30.0, 5e9), (6.0, 3e9))
    summaries = [SUMMARY | {"first_step_seconds": seconds, "peak_memory_bytes": peak} for seconds, peak in told]
    (row,) = figures({ONE: Record([[1.0]] * 3, summaries)}, 8)["rows"]
    assert (row["first_step_seconds"], row["peak_memory_bytes"]) == (6.0, 5e9)


def test_the_table_tells_what_its_columns_mean_here():
    records = {ONE: record([0.1]), TWO: record([0.2])}
    on_cpu = table(result_of(records))
    row = "| 2 | none | 1 | 16 | 0.2000 s | 0.2000 to 0.2000 s | 80.0 | 50% | 3.00 GB | 1.00 GB | 6.0 s | 12,345 |"
    assert row in on_cpu.splitlines()
    assert "weak scaling" in on_cpu and "share the CPU's 2 cores" in on_cpu
    on_gpus = table(result_of(records, gpus=["Some GPU", "Some GPU"]))
    assert "2 x Some GPU" in on_gpus and "in parts" in on_gpus and "share the CPU" not in on_gpus


def test_every_line_of_the_table_has_as_many_cells():
    failed = Record(failure="The worker was killed.")
    lines = [line for line in table(result_of({ONE: record([0.1]), TWO: failed})).splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[-1].startswith("| 2 | none | 1 | 16 | none: The worker was killed. |")


def test_what_speaks_against_the_figures_is_told():
    records = {ONE: record([0.1, 0.1, 0.3]), TWO: record([0.1], refused_steps=2.0)}
    uneven, refused = doubts(figures(records, 8)["rows"])
    assert "replicas=1" in uneven and "uneven" in uneven
    assert "replicas=2" in refused and "2 steps were refused" in refused


def toy(step):
    program = f"from benchmarks import interleaved\ndef step():\n    {step}\ninterleaved.serve(step, dict)"
    return Worker("toy", [sys.executable, "-c", program])


def test_a_worker_that_ends_leaves_the_others_their_turns(capsys):
    options = parse_arguments(["--rounds=3", "--seconds=0.01"])
    records = {ONE: Record(), TWO: Record()}
    with toy("raise MemoryError('the GPU is full')") as bad, toy("return 0.5") as good:
        workers = {ONE: bad, TWO: good}
        take_turns(records, lambda variant: contextlib.nullcontext(workers[variant]), options)
    assert len(records[TWO].turns) == 3 and set(sum(records[TWO].turns, [])) == {0.5}
    assert records[ONE].turns == [] and "the GPU is full" in records[ONE].failure
    assert capsys.readouterr().err.count("the GPU is full") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=own_images"], "invalid choice: 'own_images'"),
        (["--replicas=1,0"], "--replicas"),
        (["--recompute=none,some"], "train.recompute = 'some'"),
        (["--batch_size=6", "--accumulate_steps=1,4"], "must divide train.batch_size = 6"),
        (["--batch_size=0"], "train.batch_size = 0"),
        (["--xla=jit"], "add --replicas=1"),
        (["--rounds=0"], "--rounds must be at least 1"),
        (["--json=/no/such/folder/file.json"], "existing folder"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_the_batch_is_the_presets_and_parts_divide_it():
    assert parse_arguments([]).batch_size == 128
    assert parse_arguments(["--batch_size=6"]).accumulate_steps == [1, 2]


@pytest.mark.slow
def test_impossible_settings_are_one_line_of_the_workers_last_words():
    options = parse_arguments(["--xla=jit", "--replicas=1"])
    with pytest.raises(WorkerEnded, match="train.xla = 'jit': not possible with 2 replicas"):
        with train_scaling.ready(TWO, options):
            pass


@pytest.mark.slow
def test_a_real_run(tmp_path, capsys):
    file = tmp_path / "figures.json"
    quick = ["--batch_size=4", "--recompute=none", "--rounds=1", "--seconds=0.1", f"--json={file}"]
    train_scaling.main(["--preset=digits", *quick, "--accumulate_steps=1"])
    result = json.loads(file.read_text())
    first, second = result["rows"]
    assert [first["images_a_step"], second["images_a_step"]] == [4, 8]
    for row in (first, second):
        assert row["failure"] is None and row["refused_steps"] == 0.0
        assert row["memory_before_first_step_bytes"] < row["peak_memory_bytes"]
        assert 0.0 < row["step_seconds"] < row["first_step_seconds"]
        assert row["trace_seconds"] < row["first_step_seconds"]
    # Each replica's part of the graph is written out.
    assert second["graph_nodes"] > 1.8 * first["graph_nodes"]
    assert capsys.readouterr().out.count("GB |") == 4
