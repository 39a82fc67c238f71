import functools
import itertools
import json

import numpy as np
import pytest

from benchmarks import all as all_benchmarks
from benchmarks import results
from benchmarks.all import COLUMNS, REGRESSION, UNCLEAR, Job, Measured, failed, is_clear, run_round, summarize, table
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


def test_a_result_has_the_ratio_of_pairs_and_its_noise():
    # The machine was half as fast in every second round: no noise in the ratio.
    row = summarize(JOB, "cifar10", [a_round(3.0, yardstick=1.0), a_round(6.0, yardstick=2.0)] * 2)
    assert row["ratio"] == pytest.approx(3.0) and row["noise"] == pytest.approx(0.0, abs=1e-12)
    assert row["batch_size"] == 16 and row["first_step_seconds"] == 9.0
    assert (row["median_seconds"], row["seconds"], row["yardstick_seconds"]) == (4.5, [3.0, 6.0] * 2, [1.0, 2.0] * 2)
    alone = summarize(JOB, None, [a_round(3.0), a_round(6.0), a_round(3.0)])
    assert alone["ratio"] is None and alone["noise"] == pytest.approx(np.log(2.0) / 3.0)


def test_the_table_has_a_line_for_every_result_also_for_one_that_failed():
    result = {"format": 2, **results.stamp(), "complete": True}
    command = {"ours": Measured([250.0], a_round(1.0)["ours"].summary | {"first_step_seconds": None})}
    result["results"] = [
        summarize(Job("training", "cifar10"), "cifar10", [a_round(6.0, yardstick=1.5), a_round(6.3, yardstick=1.5)]),
        summarize(Job("export", "mnist"), None, [command]),
        failed(JOB, "killed | memory"),
    ]
    text = table(result)
    assert "| training step | cifar10 | 4 | 6.15 s | cifar10 | 4.1 | 2.4% | 2 | 9 s | 3.21 GB |" in text
    assert "| nvae-export, verified | mnist | - | 250 s | - | - | - | 1 | - | 3.21 GB |" in text
    assert "| failed: killed \\| memory |" in text
    lines = [line for line in text.replace("\\|", "").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
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


def rounds_until_clear(noise, slower, random):
    """The verdict, and after how many rounds, on code that takes so much longer, as `measure` goes on."""
    # The machine is not always as fast, which pairs have in common.
    drawn = random.normal(1.0, noise, size=(2, 20)) * [[1.0 + slower], [1.0]] * random.normal(1.0, 0.1, size=20)
    rounds = [a_round(ours, against=other) for ours, other in drawn.T]
    for count in range(3, 21):
        row = summarize(JOB, None, rounds[:count])
        if is_clear(row, None):
            break
    return all_benchmarks.changes_of(row, None)[0].verdict, count


@pytest.mark.parametrize("noise, most_rounds", [(0.005, 4), (0.015, 5), (0.03, 8)])
def test_the_same_code_passes_and_six_percent_fail(noise, most_rounds):
    random = np.random.default_rng(0)
    same = [rounds_until_clear(noise, 0.0, random) for _ in range(200)]
    slower = [rounds_until_clear(noise, 0.06, random)[0] for _ in range(200)]
    assert np.mean([verdict in ("", "better") for verdict, _ in same]) >= 0.97
    assert np.mean([verdict in (REGRESSION, UNCLEAR) for verdict in slower]) >= 0.97
    assert np.mean([count for _, count in same]) <= most_rounds


def test_limits_of_times_first_steps_and_memory():
    def verdicts(**changes):
        before, after = (summarize(JOB, None, [a_round(1.0 + 0.001 * n) for n in range(6)]) for _ in range(2))
        after.update({key: [value * factor for value in after[key]] for key, factor in changes.items()})
        return [change.verdict for change in all_benchmarks.changes_between(before, after)]

    assert verdicts() == ["", "", ""]
    assert verdicts(seconds=1.04, every_first_step_seconds=1.19, every_peak_memory_bytes=1.04) == ["", "", ""]
    assert verdicts(seconds=1.06) == [REGRESSION, "", ""] and verdicts(seconds=0.9) == ["better", "", ""]
    assert verdicts(every_first_step_seconds=1.21, every_peak_memory_bytes=1.06) == ["", REGRESSION, REGRESSION]


def test_a_file_is_compared_through_the_yardstick(quick, tmp_path, capsys):
    file = str(tmp_path / "earlier.json")
    arguments = ["--only=sampling", "--presets=mnist", "--no-yardstick"]
    quick(sampling=1.0)
    all_benchmarks.main([*arguments, f"--json={file}"])
    (row,) = json.loads((tmp_path / "earlier.json").read_text())["results"]
    assert 3 <= len(row["seconds"]) < 12  # it ends where comparisons are clear
    all_benchmarks.main([*arguments, f"--compare={file}"])
    assert "0 regressions" in capsys.readouterr().out
    quick(sampling=1.06)
    assert exit_code(*arguments, f"--compare={file}") == 3 and "1 regressions" in capsys.readouterr().out
    # A slower hour is none where the yardstick was slower too.
    before, after = (
        summarize(JOB, "cifar10", [a_round(hour * (4.0 + n / 50), yardstick=hour) for n in range(4)]) for hour in (1, 2)
    )
    assert all_benchmarks.changes_between(before, after)[0].growth == pytest.approx(0.0)
    other = after | {"yardstick": "mnist"}
    assert all_benchmarks.changes_between(before, other)[0].growth == pytest.approx(1.0)
    # A single round, or another batch, says nothing.
    one = summarize(JOB, None, [a_round(1.0)])
    assert [change.verdict for change in all_benchmarks.changes_between(one, one)] == [UNCLEAR] * 3
    assert all_benchmarks.changes_of(one | {"batch_size": 8}, {"results": [one]}) == []
    quick(sampling=1.0, nelbo=1.0)
    changed = json.loads((tmp_path / "earlier.json").read_text())
    changed["versions"]["keras"] = "0"
    (tmp_path / "earlier.json").write_text(json.dumps(changed))
    all_benchmarks.main(["--only=sampling,nelbo", "--presets=mnist", "--no-yardstick", f"--compare={file}"])
    printed = capsys.readouterr().out
    assert "nelbo mnist: the earlier file has no result" in printed and "keras was 0 and is " in printed


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 0})])
def test_another_file_is_refused_in_one_line(content, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(content)
    assert exit_code(f"--compare={file}", "--no-yardstick") == 2
    assert f"--compare: {file}: " in capsys.readouterr().err.splitlines()[-1]


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


@pytest.mark.parametrize("slower, code", [(1.0, 0), (1.06, 3)])
def test_another_checkout_is_run_in_turn_with_this(slower, code, tmp_path, monkeypatch, capsys):
    for name, seconds in (("ours", 0.05 * slower), ("before", 0.05)):
        file = tmp_path / name / "benchmarks" / "workloads.py"
        file.parent.mkdir(parents=True)
        # Without it, that of the package on the path would be run.
        file.with_name("__init__.py").touch()
        file.write_text(WORKER.format(seconds=seconds))
    monkeypatch.setattr(results, "ROOT", tmp_path / "ours")
    arguments = ["--only=nelbo", "--presets=digits", f"--against={tmp_path / 'before'}"]
    assert code == 0 or exit_code(*arguments) == code
    if code == 0:
        all_benchmarks.main(arguments)
    printed = capsys.readouterr()
    assert f"{code and 1} regressions" in printed.out and "| nelbo digits | time | " in printed.out
    assert "against 0.05" in printed.err
