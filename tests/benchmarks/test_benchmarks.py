import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import pathlib
import sys

import psutil
import pytest

from benchmarks import all as all_benchmarks
from benchmarks import results, train_step, workloads
from benchmarks.all import run_round, summarize
from benchmarks.workloads import worker
from nvae_tf.errors import exit_on_user_error
from tests.command_fixtures import TINY, config_flags, output_of


def a_round(ours, **others):
    """A process that takes this number of seconds, with the memory and first step of always."""
    summary = {"first_step_seconds": 9.0, "peak_memory_bytes": 3_210_000_000}
    return {name: summary | {"seconds": seconds} for name, seconds in ({"ours": ours} | others).items()}


def test_sides_take_turns_and_who_is_first_changes():
    asked = []

    @contextlib.contextmanager
    def toy(name):
        seconds = itertools.count(1)

        def ask(word):
            asked.append(f"{name} {word}")
            return {"seconds": next(seconds)} if word == "step" else {"name": name}

        yield ask
        asked.append(f"{name} ended")

    sides = {name: functools.partial(toy, name) for name in ("ours", "yardstick")}
    for number, order in ((1, ["ours", "yardstick"]), (2, ["yardstick", "ours"])):
        asked.clear()
        measured = run_round(sides, turns=2, warm_up=1, clock_steps=3, number=number)
        # The first step, and the first three of the clock, are for warming up; then medians of three.
        assert measured["ours"] == {"name": "ours", "seconds": 2.5, "every_second": [2.0, 3.0]}
        assert measured["yardstick"]["every_second"] == [5.0, 8.0]
        assert asked[:2] == [f"{name} ready" for name in order] and asked[-1].endswith(" ended")
        turns = [name for name, _ in itertools.groupby(line.split()[0] for line in asked if line.endswith("step"))]
        assert turns == order * 2


def test_a_result_has_the_ratios_of_pairs():
    # The machine was half as fast in every second round, which does not change the ratio.
    row = summarize([a_round(3.0, yardstick=1.0), a_round(6.0, yardstick=2.0)])
    assert (row["seconds"], row["seconds_ratios"]) == ([3.0, 6.0], [3.0, 3.0])
    assert row["first_step_seconds"] == [9.0] * 2 and row["peak_memory_bytes_ratios"] == []
    against = summarize([a_round(3.0, against=2.0)])
    assert against["seconds_ratios"] == [1.5] and against["peak_memory_bytes_ratios"] == [1.0]
    assert summarize([a_round(3.0)])["seconds_ratios"] == []


@pytest.mark.parametrize(
    ("failure", "code"), [(ChildProcessError("it was killed"), "error: it was killed"), (KeyboardInterrupt(), 130)]
)
def test_what_was_measured_before_a_failure_is_kept(tmp_path, capsys, monkeypatch, failure, code):
    file = tmp_path / "now.json"

    def run_round(sides, *_):
        if sides["ours"].args[0].startswith("nelbo"):
            raise failure
        return a_round(1.0, against=0.5)

    monkeypatch.setattr(all_benchmarks, "run_round", run_round)
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        all_benchmarks.main(["sampling", "nelbo"], ["mnist"], rounds=2, json=str(file), against=".")
    assert ended.value.code == code and not json.loads(file.read_text())["complete"]
    first, memory = "9 (9 to 9) | 1 (1 to 1)", "3.21e+09 (3.21e+09 to 3.21e+09) | 1 (1 to 1)"
    row = f"| sampling | mnist | 16 | - | 1 (1 to 1) | 2 (2 to 2) | {first} | {memory} |"
    assert row in capsys.readouterr().out
    assert [row["seconds"] for row in json.loads(file.read_text())["results"]] == [[1.0] * 2]


RECIPES = """
from typing import Annotated
from benchmarks import results

def toy(kind: Annotated[str, "Kind.", "a", "b"], workdir: Annotated[str, "Run."],
        count: Annotated[int, "Number.", 1] = 3, figure: Annotated[bool, "Draw."] = False):
    return dict(locals())

if __name__ == "__main__":
    results.run_recipe("recipes", "Toys.", toy)
"""


# The other side of `worker` and its command, as any checkout has them: what changes here breaks `--against`.
WORKER = """
import json, os, sys
assert sys.argv[1:3] == ["nelbo", "digits"] and os.path.isdir(sys.argv[3])
with open(int(os.environ["BENCHMARK_ANSWERS_FILE_DESCRIPTOR"]), "w") as answers:
    for line in sys.stdin:
        answer = {{"seconds": {seconds}, "first_step_seconds": 1.0}}
        print(json.dumps(answer | {{"peak_memory_bytes": 1000}}), file=answers, flush=True)
"""


def test_another_checkout_is_run_in_turn_with_this(tmp_path, monkeypatch, capsys):
    for name, seconds in (("ours", 0.06), ("before", 0.05)):
        file = tmp_path / name / "benchmarks" / "workloads.py"
        file.parent.mkdir(parents=True)
        # Without it, the package on the path would be run.
        file.with_name("__init__.py").touch()
        file.write_text(WORKER.format(seconds=seconds))
    monkeypatch.setattr(results, "ROOT", tmp_path / "ours")
    before, file = tmp_path / "before", tmp_path / "now.json"
    all_benchmarks.main(["nelbo"], ["digits"], against=str(before), json=str(file))
    result = json.loads(file.read_text())
    assert result["complete"] and result["results"][0]["seconds_ratios"] == pytest.approx([1.2] * 5)
    assert "against 0.05" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("all", "", "the yardstick needs PyTorch"),
        ("all", "--only=training,smapling", "--only = 'smapling': not one of the choices (training, "),
        ("all", "--presets=mnits", "--presets = 'mnits': not one of the choices (digits, "),
        ("all", "--rounds=0", "--rounds=0: 0 is not a positive integer"),
        ("all", "--json=/tmp", "--json=/tmp: a folder, not a file"),
        ("all", "--against=/tmp", "--against=/tmp: no checkout of this project"),
        ("train_step", "--preset=mnist --no_yardstick train.recompute=some", "train.recompute = 'some': not one of"),
    ],
)
def test_mistakes_are_reported_before_anything_starts(module, arguments, message, refused, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *on: None if name == "torch" else find_spec(name, *on))
    assert message in refused(f"benchmarks.{module}", *arguments.split())


def test_a_recipe_has_a_flag_for_each_parameter(tmp_path, done, refused, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipes.py").write_text(RECIPES)
    file, words = tmp_path / "now.json", ["recipes", "toy", "b", "--workdir=x", "--figure"]
    assert "workdir  " in done(*words, f"--json={file}")
    assert {"kind": "b", "workdir": "x", "count": 3, "figure": True}.items() <= json.loads(file.read_text()).items()
    assert "--count=0: 0 is not a positive integer" in refused(*words, "--count=0")
    assert "the recipe of recipes = 'tyo': not one of the recipes (toy)" in refused("recipes", "tyo")


def test_a_result_says_where_it_is_from_also_without_linux_or_with_another_tensorflow(monkeypatch):
    def version(name):
        if name == "tensorflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: path.joinpath("missing").open())
    stamp = results.stamp()
    assert "keras 1.0, numpy 1.0" in stamp["versions"] and " cores, " in stamp["machine"]


SERVE = """
from benchmarks import workloads
workloads._TURN_SECONDS = 0.05
workloads.serve(lambda: work, has_first_step={})
"""


def program(text, has_first_step=False):
    return worker("toy", [sys.executable, "-c", text + SERVE.format(has_first_step)])


def test_answers_come_through_whatever_the_worker_prints_and_one_that_ends_is_named():
    noisy = "def work():\n    print('noise')\nwork.summary = lambda: {'name': 'toy'}"
    with program(noisy) as ask:
        assert [ask("step").keys() for _ in range(2)] == [{"seconds"}] * 2
        summary = ask("summary")
    assert summary["peak_memory_bytes"] > 1e6 and summary["name"] == "toy"
    with program("import os\ndef work():\n    os.kill(os.getpid(), 9)") as ask:
        with pytest.raises(ChildProcessError, match="`toy`: exit status -9"):
            ask("step")


def test_leaving_the_block_ends_a_worker_and_its_processes():
    start = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\ndef work():\n    pass\n"
    with program(f"{start}work.summary = lambda: {{'child': child.pid}}") as ask:
        child = psutil.Process(ask("summary")["child"])
        assert child.is_running()
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("has_first_step", [True, False])
def test_quick_work_is_timed_several_times_at_once_and_a_command_has_no_first_step_but_its_own_memory(has_first_step):
    text = "import time\ncalls = []\ndef work():\n    calls.append(time.sleep(0.001))\n"
    text += "work.summary = lambda: {'calls': len(calls), 'peak_memory_bytes': 1000}"
    with program(text, has_first_step) as ask:
        times = [ask("step")["seconds"] for _ in range(2)]
        summary = ask("summary")
    assert 2 < summary["calls"] <= 101 and min(times) >= 0.001 and summary["peak_memory_bytes"] == 1000
    assert (summary["first_step_seconds"] is not None) == has_first_step


@pytest.mark.slow
def test_a_training_step_with_another_setting(tmp_path, monkeypatch):
    run_round = all_benchmarks.run_round

    def with_a_clock(*arguments):
        clock = {"seconds": 2.0, "every_second": [4.0, 2.0], "peak_memory_bytes": 6}
        return run_round(*arguments) | {"yardstick": clock}

    monkeypatch.setattr(all_benchmarks, "run_round", with_a_clock)
    file = tmp_path / "now.json"
    settings = "train.batch_size=4 model.num_latent_scales=1"
    train_step.main("digits", 1, settings, no_yardstick=True, json=str(file))
    result = json.loads(file.read_text())
    assert result["batch_size"] == 4 and 0.0 < result["step_seconds"] < result["first_step_seconds"]
    assert result["ratio"] == result["step_seconds"] / result["yardstick_seconds"] == result["step_seconds"] / 2.0
    assert result["graph_nodes"] > 1000 and result["peak_memory_bytes"] > 3e8


@pytest.mark.slow
def test_the_workloads_of_an_export(tmp_path, monkeypatch):
    """That whole rounds are run is seen above; the model is smaller than theirs, but for it the commands are theirs."""
    model = {name: value for name, value in TINY.items() if name.startswith("model.")}
    smaller = config_flags(model | {"model.num_groups_per_scale": 1, "model.squeeze_excite": False})
    exports, run_python = [], workloads.run_python

    def run(name, *words):
        if name == "train.main":
            output_of(["-m", name, *words, *smaller])
        elif exports.append((name, *words)) or len(exports) > 1:
            return run_python(name, *words)
        else:
            # The second export is the same and takes the place of the first.
            pathlib.Path(words[1].removeprefix("--output=")).mkdir()

    monkeypatch.setattr(workloads, "run_python", run)
    workloads.prepare_export("digits", tmp_path)
    export = workloads.export("digits", 2, tmp_path)
    export()
    assert exports == [exports[0]] * 2 and export.summary()["peak_memory_bytes"] > 3e8
    images = workloads.saved_model_sampling("digits", 2, tmp_path)()
    assert images.shape == (2, 16, 16, 1) and images.std() > 0.0
