import functools
import itertools
import json

import numpy as np
import pytest

from benchmarks import all as all_benchmarks
from benchmarks import results
from benchmarks.all import Job, Measured, failed, run_round, summarize, table
from benchmarks.workloads import WorkerEnded

JOB = Job("nelbo", "mnist")
QUICK = ["--only=sampling,nelbo,training", "--presets=mnist", "--no-yardstick"]


def a_round(ours, **others):
    """One that takes so many seconds, with the memory and first step of always."""
    summary = {"first_step_seconds": 9.0, "import_seconds": 4.0, "peak_memory_bytes": 3_210_000_000}
    return {name: Measured([seconds], summary) for name, seconds in ({"ours": ours} | others).items()}


@pytest.fixture
def quick(monkeypatch):
    """`quick(workload=outcome)`: rounds that take seconds drawn around the outcome, or the exception of its process."""
    random = np.random.default_rng(0)

    def replace(noise=0.01, **outcomes):
        def run_round(sides, *_):
            name = sides["ours"].args[0].split()[0]
            if isinstance(outcomes[name], BaseException):
                raise outcomes[name]
            return {
                side: Measured([seconds * random.normal(1.0, noise)], a_round(1.0)["ours"].summary)
                for side, seconds in {"ours": outcomes[name], "against": 1.0}.items()
                if side in sides
            }

        monkeypatch.setattr(all_benchmarks, "run_round", run_round)

    return replace


def exit_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        all_benchmarks.main(list(arguments))
    return ended.value.code


def test_sides_take_turns_and_who_is_first_changes():
    asked = []

    class Toy:
        def __init__(self, name):
            self.name, self.seconds = name, iter(range(1, 100))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            asked.append(f"{self.name} ended")

        def ask(self, word):
            asked.append(f"{self.name} {word}")
            return {"seconds": next(self.seconds) if word == "step" else None}

    sides = {name: functools.partial(Toy, name) for name in ("ours", "yardstick")}
    for number, first in ((1, "ours"), (2, "yardstick")):
        asked.clear()
        measured = run_round(sides, turns=2, warm_up=1, clock_steps=3, number=number)
        # The first step, and the first three of the clock, are for warming up; then medians of three.
        assert (measured["ours"].seconds, measured["yardstick"].seconds) == ([2.0, 3.0], [5.0, 8.0])
        assert asked[0] == f"{first} ready" and asked[1].endswith(" ready") and asked[-1].endswith(" ended")
        turns = [name for name, _ in itertools.groupby(asked[2:-4], key=lambda line: line.split()[0])]
        other = ({"ours", "yardstick"} - {first}).pop()
        assert (
            turns == [first, other, first, other]
            and [line for line in asked if line.endswith("step")][-1][:4] == other[:4]
        )


def test_a_result_has_the_ratios_of_pairs():
    # The machine was half as fast in every second round, which does not change the ratio.
    row = summarize(JOB, "cifar10", [a_round(3.0, yardstick=1.0), a_round(6.0, yardstick=2.0)])
    assert (row["seconds"], row["seconds_ratios"]) == ([3.0, 6.0], [3.0, 3.0])
    assert row["batch_size"] == 16 and row["first_step_seconds"] == [9.0] * 2
    assert row["peak_memory_bytes_ratios"] == []
    against = summarize(JOB, None, [a_round(3.0, against=2.0)])
    assert against["seconds_ratios"] == [1.5] and against["peak_memory_bytes_ratios"] == [1.0]
    assert summarize(JOB, None, [a_round(3.0)])["seconds_ratios"] == []


def test_the_table_has_a_line_for_every_result_also_for_one_that_failed():
    result = {**results.stamp(), "against": "../before", "complete": True}
    command = {"ours": Measured([250.0], a_round(1.0)["ours"].summary | {"first_step_seconds": None})}
    result["results"] = [
        summarize(Job("training", "cifar10"), None, [a_round(6.0, against=2.0), a_round(6.3, against=3.0)]),
        summarize(Job("export", "mnist"), None, [command]),
        failed(JOB, "killed | memory"),
    ]
    text = table(result)
    memory = "3.21e+09 bytes | 1.000 (1.000 to 1.000)"
    ratios = f"2.550 (2.100 to 3.000) | 9 s | 1.000 (1.000 to 1.000) | {memory}"
    assert f"| training step | cifar10 | 4 | 2 | 6.15 s | {ratios} |" in text and "/ before" in text
    assert "| nvae-export, verified | mnist | - | 1 | 250 s | - | - | - | 3.21e+09 bytes | - |" in text
    assert "| failed: killed \\| memory |" in text
    assert result["date"] in text and result["machine"]["processor"] in text and "Interrupted" not in text


def test_what_fails_leaves_the_others_their_turn_and_what_was_measured_is_kept(quick, tmp_path, capsys):
    ended = WorkerEnded("Traceback\nMemoryError: full\nThe worker `nelbo mnist` ended.")
    file = tmp_path / "now.json"
    arguments = [*QUICK, "--rounds=2", f"--json={file}"]
    quick(noise=0.0, sampling=1.0, nelbo=ended, training=2.0)
    assert exit_code(*arguments) == 1
    printed = capsys.readouterr()
    assert "failed: MemoryError: full The worker `nelbo mnist` ended." in printed.out
    assert "Traceback" in printed.err and "Traceback" not in printed.out
    rows = json.loads(file.read_text())["results"]
    assert [row["workload"] for row in rows] == ["sampling", "nelbo", "training"]
    assert [row.get("seconds") for row in rows] == [[1.0] * 2, None, [2.0] * 2]
    quick(sampling=1.0, nelbo=KeyboardInterrupt())
    assert exit_code(*arguments) == 130 and "Interrupted" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert not result["complete"] and len(result["results"]) == 1


# The other side of `Worker` and its command, as any checkout has them: what changes here breaks `--against`.
WORKER = """
import json, os, random, sys
random.seed({seconds})
assert sys.argv[1:3] == ["nelbo", "digits"] and os.path.isdir(sys.argv[3])
with open(int(os.environ["BENCHMARK_ANSWERS_FILE_DESCRIPTOR"]), "w") as answers:
    for line in sys.stdin:
        answer = {{"seconds": {seconds} * random.gauss(1.0, 0.01), "first_step_seconds": 1.0, "import_seconds": 1.0}}
        print(json.dumps(answer | {{"peak_memory_bytes": 1000}}), file=answers, flush=True)
"""


def test_another_checkout_is_run_in_turn_with_this(tmp_path, monkeypatch, capsys):
    for name, seconds in (("ours", 0.06), ("before", 0.05)):
        file = tmp_path / name / "benchmarks" / "workloads.py"
        file.parent.mkdir(parents=True)
        # Without it, that of the package on the path would be run.
        file.with_name("__init__.py").touch()
        file.write_text(WORKER.format(seconds=seconds))
    monkeypatch.setattr(results, "ROOT", tmp_path / "ours")
    before, file = tmp_path / "before", tmp_path / "now.json"
    all_benchmarks.main(["--only=nelbo", "--presets=digits", f"--against={before}", f"--json={file}"])
    (row,) = json.loads(file.read_text())["results"]
    assert len(row["seconds_ratios"]) == 5 and row["seconds_ratios"] == pytest.approx([1.2] * 5, rel=0.1)
    assert "against 0.05" in capsys.readouterr().err
