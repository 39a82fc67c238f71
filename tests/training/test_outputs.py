import csv
import dataclasses
import io
import re
import signal
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from nvae_tf.config import ExperimentConfig, ObjectiveConfig, OptimizerConfig
from nvae_tf.data.pipeline import shown_numbers
from nvae_tf.data.sources import load_split
from nvae_tf.generation.image_grid import read_images
from nvae_tf.generation.sampling import generate_images
from nvae_tf.optimization import average_of_weights
from nvae_tf.progress import StatusLine
from nvae_tf.runs.loading import model_for_training
from nvae_tf.runs.run_folder import METRICS_COLUMNS, MetricsFile, RunFolder, read_run_config
from nvae_tf.training import outputs as outputs_module
from nvae_tf.training.launcher import StopRequest
from nvae_tf.training.outputs import RunOutputs, WandbLog, first_words
from nvae_tf.training.run import Run
from nvae_tf.training.strategy import Replicas
from tests.command_fixtures import assert_shown, metrics_rows
from tests.tiny_model import assert_same, tiny_config, tiny_model, values


def row(step):
    return dict.fromkeys(METRICS_COLUMNS, 0.123456789) | {"step": step}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def steps(path):
    return [int(row["step"]) for row in rows_of(path)]


@pytest.fixture
def metrics(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.drop_after(0)
    assert not list(tmp_path.iterdir())
    for step in (10, 20, 30):
        metrics.append(row(step))
    return metrics


def test_lines_are_added_below_one_header(metrics, tmp_path):
    path = tmp_path / "metrics.csv"
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(METRICS_COLUMNS) and len(lines) == 4
    assert lines[1] == "10," + ",".join(["0.123457"] * (len(METRICS_COLUMNS) - 1))
    assert 20 in metrics.rows and 25 not in metrics.rows and float(metrics.rows[20]["kl_weight"]) == 0.123457
    metrics.drop_after(25)
    assert steps(path) == [10, 20]
    metrics.append(row(30))
    assert steps(path) == [10, 20, 30]


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda lines: [*lines, lines[2].replace("0.1", "0.2")], [10, 20, 30]),  # twice, with other numbers
        (lambda lines: [*lines, lines[0]], [10, 20, 30]),  # a second header
        (lambda lines: [*lines[:2], lines[2][:40], lines[3]], [10, 30]),  # a cut line
        (lambda lines: [*lines[:2], lines[2].replace("0.123457", ""), lines[3]], [10, 30]),  # no score
        (lambda lines: [*lines[:2], lines[2].replace(",0", ',"0', 1), '"', lines[3]], [10, 30]),
        (lambda lines: [*lines, "9" * 200_000], [10, 20, 30]),
        (lambda lines: ["step,epoch", "10,1"], []),
        (lambda lines: ["\x00\xff"], []),
    ],
)
def test_damaged_and_doubled_lines_are_dropped(metrics, tmp_path, change, left):
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n", encoding="latin-1")
    metrics = MetricsFile(path)
    metrics.drop_after(30)
    assert steps(path) == left and all(step in metrics.rows for step in left)
    metrics.append(row(40))
    assert steps(path) == [*left, 40] and path.read_text().startswith("step,epoch,")


def test_a_file_of_another_version_goes_on_with_a_new_column_and_keeps_those_that_are_not_known(tmp_path):
    path = tmp_path / "metrics.csv"
    columns = [*METRICS_COLUMNS[:-1], "invented_later"]
    lines = [",".join(columns), *(",".join([step] + ["0.5"] * (len(columns) - 1)) for step in ("10", "20"))]
    path.write_text("\n".join(lines) + "\n")
    MetricsFile(path).append(row(30))
    # What has empty places is as whole as the others.
    MetricsFile(path).drop_after(30)
    rows = rows_of(path)
    assert list(rows[0]) == [*columns, METRICS_COLUMNS[-1]]
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert [row[METRICS_COLUMNS[-1]] for row in rows] == ["", "", "0.123457"]
    assert [row["invented_later"] for row in rows] == ["0.5", "0.5", ""]


def run_on_images(config):
    parts = (load_split(config.data, split) for split in ("train", "test"))
    model, schedule = model_for_training(config, 14, 60)
    model.optimizer.build(model.trainable_variables)
    return Run(config, 14, *parts, False, model, schedule, Replicas())


class StopAfter(StopRequest):
    """A signal that comes once the run has looked for it this number of times."""

    def __init__(self, looks):
        super().__init__()
        self._looks = looks

    def check(self):
        self._looks -= 1
        self.signal_number = signal.SIGTERM if self._looks < 0 else None
        super().check()


@pytest.mark.parametrize(("likelihood", "scale", "unit"), [("bernoulli", 1.0, "nats"), ("normal", 0.0056, "bits/dim")])
def test_the_line_has_one_unit_and_means_that_move_on(likelihood, scale, unit, finished_run, tmp_path, monkeypatch):
    config = read_run_config(RunFolder(finished_run[0]))
    run = run_on_images(config)
    model = dataclasses.replace(config.model, likelihood=likelihood)
    run = run._replace(config=dataclasses.replace(config, model=model))
    outputs, lines = RunOutputs(RunFolder(tmp_path), run, StopRequest()), []
    monkeypatch.setattr(StatusLine, "is_due", True)
    monkeypatch.setattr(outputs, "_write_training_curves", lambda step: None)
    monkeypatch.setattr(outputs.status, "show", lambda line, _: lines.append(line))
    for step, nats in ((8, 40.0), (9, 20.0)):
        for metric in run.model.metrics:
            metric.reset_state()
            metric.update_state(nats)
        outputs.step_taken(step)
    for line, nats in zip(lines, (40.0, 37.5), strict=True):
        nelbo, shown_unit, loss, kl = re.search(r"NELBO (\S+) (\S+) .* loss (\S+)  KL (\S+)", line).groups()
        assert np.allclose(np.float64([nelbo, loss, kl]), np.multiply([2, 1, 1], nats * scale), rtol=0.02)
        assert shown_unit == unit


@pytest.mark.parametrize(("epochs", "warned"), [(6.0, "Warning: the warm-up of 84 steps"), (1.0, "")])
def test_a_run_begins_with_what_it_is_and_a_warning_of_a_long_warm_up(epochs, warned, tmp_path):
    lengths = {"objective": ObjectiveConfig(total_steps=60), "optimizer": OptimizerConfig(warmup_epochs=epochs)}
    config = ExperimentConfig(model=tiny_config(), **lengths)
    parts = [types.SimpleNamespace(count=count) for count in (448, 50)]
    run = Run(config, 14, *parts, False, tiny_model(), None, Replicas())
    first, _, *warning = first_words(RunFolder(tmp_path), run, 0).splitlines()
    assert first.startswith("cifar10: 448 training and 50 test images; 2 latent groups, ")
    assert first.endswith(" weights.")
    assert warning == ([f"{warned} (optimizer.warmup_epochs) is longer than the run."] if warned else [])


@pytest.mark.parametrize("within", ["evaluation", "sampling"])
def test_a_stop_within_either_leaves_weights_and_metrics(within, finished_run, tmp_path, capsys):
    config, folder = read_run_config(RunFolder(finished_run[0])), RunFolder(tmp_path)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, ema_momentum=0.9))
    run = run_on_images(config)
    # Both are done with the averages of the weights, which are not the weights.
    run.model.optimizer.iterations.assign(1)
    for average in average_of_weights(run.model).values():
        average.assign(0.9 * average)
    metrics = MetricsFile(folder.metrics_file)
    for step in (20, 40) if within == "sampling" else (20,):
        metrics.append(row(step))
    weights, content = values(run.model.weights), folder.metrics_file.read_bytes()
    assert RunOutputs(folder, run, StopAfter(1)).write_all_due(40) is False
    begun = {"evaluation": "evaluating the 360 test images\n", "sampling": "drawing reconstructions and samples\n"}
    assert capsys.readouterr().out == begun[within]
    assert_same(values(run.model.weights), weights)
    assert folder.metrics_file.read_bytes() == content and not list(tmp_path.rglob("*.png"))


@pytest.fixture(scope="module")
def events(finished_run):
    # Tags with few values keep all.
    accumulator = EventAccumulator(str(finished_run[0] / "tensorboard"), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def steps_of(events, tag):
    return [event.step for event in events.Tensors(tag)]


def scalars(events, tag):
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}


def pixels(events, tag, step):
    (encoded,) = [make_ndarray(event.tensor_proto)[2] for event in events.Tensors(tag) if event.step == step]
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("L"))


def test_samples_of_two_temperatures_and_reconstructions_below_their_images(events, finished_model, finished_run):
    tag = "samples/temperature_0.6"
    assert steps_of(events, tag) == steps_of(events, "samples/temperature_0.7") == [40, 60]
    assert_shown(pixels(events, tag, 60), generate_images(finished_model, 16, 0.6, seed=0), None)
    file = finished_run[0] / "samples" / "step-00000060.png"
    assert_shown(pixels(events, "samples/temperature_0.7", 60), read_images(file, 16, 8)[..., :1] / 255, None)
    with Image.open(file) as figure:
        expected = {"model": finished_run[0].name, "step": "60", "temperature": "0.7", "seed": "0"}
        assert expected.items() <= figure.info.items()
    test = load_split(read_run_config(RunFolder(finished_run[0])).data, "test")
    originals = test.images[shown_numbers(test, 8)] / np.float32(255)
    assert steps_of(events, "reconstructions") == [40, 60]
    rows, side, gap = pixels(events, "reconstructions", 60), 64, 6
    assert_shown(rows[:side], originals, 8)
    assert_shown(rows[side + gap :], finished_model(originals, seed=0).numpy(), 8)


def test_without_matplotlib_samples_are_a_bare_grid(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    images = np.random.default_rng(0).random([4, 16, 16, 1])
    monkeypatch.setattr(outputs_module, "generate_images", lambda *_: images)
    outputs = RunOutputs(RunFolder(tmp_path), run_on_images(read_run_config(RunFolder(finished_run[0]))), StopRequest())
    outputs.metrics.append(row(40))
    assert outputs.write_all_due(40)
    assert_shown(np.asarray(Image.open(tmp_path / "samples" / "step-00000040.png")), images, None)


def test_there_are_curves_of_training_test_and_every_group_whose_active_units_add_up(events, finished_run):
    expected = {"kl_per_group/00": 20, "kl_per_group/01": 60, "test/nelbo_nats": 40, "train/loss": 8}
    expected |= {"schedule/learning_rate": 56, "train_kl_per_group/01": 8, "test/bits_per_dim": 20}
    for tag, step in expected.items():
        assert step in steps_of(events, tag)
    in_file = {row["step"]: row for row in metrics_rows(finished_run[0])}
    assert scalars(events, "train/nelbo_nats")[40] == pytest.approx(in_file[40]["train_nelbo_nats"], rel=1e-5)
    assert b" train.steps = 60\n" in make_ndarray(events.Tensors("settings")[0].tensor_proto).item()
    groups = [scalars(events, f"active_units/{group:02d}") for group in (0, 1)]
    total = scalars(events, "test/active_units")
    assert list(total) == [20, 40, 60]
    assert total == {step: row["active_units"] for step, row in in_file.items()}
    assert total == {step: groups[0][step] + groups[1][step] for step in total}
    assert any(total.values())
    assert all(0 <= value <= 2 for group in groups for value in group.values())


def test_wandb_gets_the_same_values_and_continues_a_run(tmp_path, monkeypatch):
    begun, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    fake = types.SimpleNamespace(init=lambda **known: begun.append(known) or run, Image=lambda pixels: pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        log = WandbLog(tmp_path / "mine", {"train": {"steps": 60}})
        log.write(40, {"test/nelbo_nats": np.float32(35.5)})
        log.write(40, {"samples": np.zeros([4, 4, 3], np.uint8)})
    expected = {"name": "mine", "config": {"train": {"steps": 60}}, "resume": "allow"}
    assert begun[0] == begun[1] and expected.items() <= begun[0].items()
    assert logged[:2] == [(40, {"test/nelbo_nats": 35.5}), (40, {"samples": (4, 4, 3)})]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r'wandb is not installed: pip install "nvae_tf\[wandb\]"'):
        WandbLog(tmp_path, {})
