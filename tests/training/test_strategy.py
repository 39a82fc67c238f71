import json
import re
import shutil
import signal
import time
import types

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf

from nvae_tf import NVAE, NVAEAdamax
from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.errors import exit_on_user_error
from nvae_tf.replicas import Shard, shard_from_environment
from nvae_tf.training.launcher import StopRequest
from nvae_tf.training.loop import TrainingLoop
from nvae_tf.training.strategy import Replicas, chosen_replicas, configure_runtime
from tests import refuses
from tests.command_fixtures import assert_same_tensors, metrics_rows, output_of, saved_steps, started, tensors, until
from tests.tiny_model import tiny_config, values

SETTINGS = dict(train__steps=60, train__batch_size=16, train__log_every_steps=1000, optimizer__warmup_epochs=2)
SETTINGS |= dict(train__checkpoint_every_steps=5, train__keep_checkpoints=30, train__deterministic=True)
# Neither scores nor samples in the runs that are killed.
SETTINGS |= dict(train__evaluate_every_steps=60, train__sample_every_steps=60, objective__kl_anneal_portion=0.9)
# The scales of res_elu are set by the first batch.
SETTINGS |= dict(model__cell_set="res_elu", model__num_flows=1, optimizer__ema_momentum=0.5)
SETTINGS |= dict(model__squeeze_excite=False)
# A batch is half of it for each of two.
OF_TWO = SETTINGS | dict(train__batch_size=8)


@pytest.fixture
def clusters():
    """`clusters()`: whether XLA is set to compile parts of graphs; not so afterwards."""
    before = tf.config.optimizer.get_jit()
    tf.config.optimizer.set_jit(False)
    yield lambda: tf.config.optimizer.get_jit() == "autoclustering"
    tf.config.optimizer.set_jit(before or False)


def test_what_xla_compiles_and_where_the_step_has_a_loop(clusters, monkeypatch):
    for xla, num_gpus, replicas, whole, in_parts in (
        ("auto", 0, 2, False, False),
        ("auto", 2, 1, True, False),  # one of them trains
        ("jit", 0, 1, True, False),
        ("auto", 1, 2, False, True),  # two machines of one
    ):
        gpus = [f"GPU:{index}" for index in range(num_gpus)]
        monkeypatch.setattr("nvae_tf.training.strategy.gpus", lambda gpus=gpus: gpus)
        assert configure_runtime(TrainConfig(xla=xla), replicas) == (whole, whole)
        assert clusters() is in_parts
    for xla, scan, has_loops in (("off", "on", True), ("jit", "off", False)):
        assert configure_runtime(TrainConfig(xla=xla, scan=scan), 1) == (xla == "jit", has_loops)


def test_devices_that_are_not_there_are_refused_and_replicas_are_not_compiled_as_a_whole():
    for settings, message in (
        ({"strategy": "mirrored"}, "there is one device; set train.strategy=auto"),
        ({"strategy": "one_device", "replicas": 2}, "one_device has one.* set train.replicas=1 or train.strategy=mirr"),
        ({"strategy": "multi_worker"}, "several workers, which TF_CONFIG must name"),
    ):
        refuses(message, chosen_replicas, TrainConfig(**settings))
    for name, value, fix in (("xla", "jit", "cluster"), ("scan", "on", "off")):
        message = f"train.{name} = '{value}': not possible with 2 replicas; set train.{name}={fix}"
        refuses(message, configure_runtime, TrainConfig(**{name: value}), 2)


def test_the_place_in_a_cluster(monkeypatch):
    for cluster, task, expected in (
        ('{"chief": ["c:1"], "worker": ["a:1", "b:1"]}', '{"type": "worker", "index": 1}', (2, 3)),
        ('{"chief": ["c:1"], "worker": ["a:1", "b:1"]}', '{"type": "chief", "index": 0}', (0, 3)),
        ('{"worker": ["a:1", "b:1"]}', '{"type": "worker", "index": 2}', "can't be used .*has no task worker 2"),
        ('{"worker": ["a:1", "b:1"]}', '{"index": 0}', "TF_CONFIG = .* can't be used .*must look like"),
    ):
        monkeypatch.setenv("TF_CONFIG", f'{{"cluster": {cluster}, "task": {task}}}')
        if isinstance(expected, str):
            refuses(expected, shard_from_environment)
        else:
            shard = shard_from_environment()
            assert (shard.index, shard.count) == expected
            # Before it waits for the other workers.
            with pytest.raises(ValueError, match="strategy multi_worker has one here; set train.replicas=1$"):
                chosen_replicas(TrainConfig(replicas=2))


def test_a_lost_worker_has_an_exit_code_of_its_own_and_alone_the_error_stays():
    gone = tf.errors.UnavailableError(None, None, "gone")
    with pytest.raises(SystemExit) as end, exit_on_user_error(), Replicas(shard=Shard(1, 2)).raising_worker_lost():
        raise gone
    assert end.value.code == 75
    with pytest.raises(tf.errors.UnavailableError), Replicas().raising_worker_lost():
        raise gone


def test_a_signal_that_comes_while_workers_agree_is_not_lost():
    """It comes when this worker has said already that it has received none."""
    stop = StopRequest()

    class Slow(Replicas):
        def agreed_signal(self, number):
            stop.signal_number = signal.SIGTERM
            return number

    run = types.SimpleNamespace(replicas=Slow(), config=ExperimentConfig())
    loop = TrainingLoop(None, run, None, None, None, stop)
    assert loop.signal_at(0) is None
    assert loop.signal_at(10) == signal.SIGTERM


def assert_close_runs(one, other, step):
    expected, actual = tensors(one, step), tensors(other, step)
    assert set(actual) == set(expected) and len(actual) > 100
    for name, value in expected.items():
        if name.startswith(("model/", "averages/")):
            np.testing.assert_allclose(actual[name], value, atol=1e-5, rtol=0.0, err_msg=name)
        # Alone on its replica a step knows its own gradients only, see `StepMetrics.gradient_norm`.
        elif name.startswith("metrics/") and "gradient_norm" not in name:
            np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
        elif name.startswith("optimizer/"):
            # The moments show also gradients of a wrong size, which Adamax hides.
            size = max(1.0, float(np.max(np.abs(value), initial=0.0)))
            np.testing.assert_allclose(actual[name] / size, value / size, atol=1e-3, err_msg=name)


def launched(arguments):
    return started(["-m", "train.launch", "--processes=2", "--", *arguments[2:]])


@pytest.fixture(scope="module")
def on_one_device(commands, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("replicas") / "one"
    commands.train(workdir, **SETTINGS | dict(train__evaluate_every_steps=20), train__strategy="one_device")
    return workdir


@pytest.fixture(scope="module")
def by_two_processes(commands, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("processes") / "whole"
    launcher = launched(commands.tiny_training(workdir, **OF_TWO))
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    return workdir


@pytest.mark.slow
def test_a_compiled_run_comes_near_one_with_the_default_settings(commands, on_one_device, tmp_path, monkeypatch):
    # XLA writes what it compiles, and compiles quickly.
    quickly = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    monkeypatch.setenv("XLA_FLAGS", f"{quickly} --xla_dump_to={tmp_path / 'compiled'}")
    workdir = tmp_path / "run"
    # XLA's convolutions are slow on a CPU: a third of the run is enough.
    settings = SETTINGS | dict(train__evaluate_every_steps=20, train__xla="jit")
    commands.run_until_training(commands.tiny_training(workdir, **settings), signal.SIGTERM, "step 20: ")
    texts = (file.read_text(errors="replace") for file in tmp_path.glob("compiled/*.txt"))
    assert any("convolution(" in text for text in texts)
    actual, expected = (metrics_rows(folder)[0] for folder in (workdir, on_one_device))
    assert actual.keys() == expected.keys() and actual["step"] == expected["step"] == 20
    assert all(np.isfinite(value) for value in actual.values())
    assert actual["test_nelbo_nats"] == pytest.approx(expected["test_nelbo_nats"], rel=0.15)


@pytest.mark.slow
def test_two_processes_do_what_one_device_does(on_one_device, by_two_processes):
    assert_close_runs(on_one_device, by_two_processes, 5)
    log = by_two_processes.with_name("whole-logs") / "worker-1.log"
    assert "has all its 60 steps" in log.read_text()


@pytest.mark.slow
def test_two_replicas_go_on_as_one_device_would(commands, on_one_device, tmp_path):
    workdir = shutil.copytree(on_one_device, tmp_path / "run")
    for file in set(workdir.glob("checkpoints/step-*")) - set(workdir.glob("checkpoints/step-5.*")):
        file.unlink()
    (workdir / "samples" / "step-00000060.png").unlink()
    # A process of its own: one that has used its devices can't have several.
    output = commands.train(workdir, **OF_TWO, train__replicas=2, train__strategy="mirrored", train__recompute="all")
    assert ", from step 5 on" in output
    assert_close_runs(on_one_device, workdir, 10)
    assert (workdir / "samples" / "step-00000060.png").exists()


@pytest.mark.slow
def test_a_killed_worker_and_a_stopped_launcher_are_as_if_nothing_had_happened(commands, by_two_processes, tmp_path):
    """SIGKILL at a random moment to one of two, the chief or the other: bit for bit the run that was not touched."""
    command, chance = commands.tiny_training(tmp_path / "stopped", **OF_TWO), np.random.default_rng()
    victim, step, delay = chance.integers(2), chance.integers(11), chance.uniform(0.0, 0.1)
    launcher, checkpoints = launched(command), tmp_path / "stopped" / "checkpoints"
    next(line for line in launcher.stdout if line.startswith("step "))
    until(lambda: max(saved_steps(checkpoints), default=0) >= step)
    time.sleep(delay)
    children = psutil.Process(launcher.pid).children()
    workers = [child for child in children if "train.main" in child.cmdline()]
    sorted(workers, key=psutil.Process.create_time)[victim].kill()
    launcher.communicate(timeout=120)
    assert launcher.returncode == 137, f"worker {victim} after step {step} and {delay} s"
    launcher = launched(command)
    next(line for line in launcher.stdout if line.startswith("step "))
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 143 and "by SIGTERM; checkpoint saved" in output, output
    assert_same_tensors(by_two_processes, tmp_path / "stopped", max(saved_steps(checkpoints)))


def half_written_steps(workdir):
    """Steps whose checkpoints a process is writing, or was when it was killed."""
    folders = (workdir / "checkpoints").glob(".step-*.partial")
    return [int(entry.name.removeprefix(".step-").removesuffix(".partial")) for entry in folders]


@pytest.mark.slow
def test_killed_within_a_save_and_interrupted_is_the_same_run(commands, finished_run, tmp_path):
    (whole, _), workdir, log = finished_run, tmp_path / "killed", tmp_path / "output"
    changes = dict(train__checkpoint_every_steps=1, train__checkpoint_every_minutes=0)
    with log.open("w") as stream:
        started = commands.started(commands.tiny_training(workdir, **changes), stdout=stream)
    earliest = np.random.default_rng().integers(1, 12)
    wait_until(started, log, lambda: max(saved_steps(workdir / "checkpoints"), default=0) >= earliest)
    # Whatever the machine's speed.
    wait_until(started, log, lambda: half_written_steps(workdir))
    started.kill()
    assert started.wait() == -signal.SIGKILL, log.read_text()
    reached = max(saved_steps(workdir / "checkpoints"))
    assert earliest <= reached < 60
    # What is left of one that is whole already is not passed over.
    half_written = [step for step in half_written_steps(workdir) if step > reached]
    # Here the only checkpoint is the one that the interruption leaves.
    code, output = commands.run_until_training(commands.tiny_training(workdir), signal.SIGINT)
    assert f", from step {reached} on" in output
    for step in half_written:
        assert f"passed over step-{step} (half-written); step-{reached} is used" in output
    message = r"interrupted at step (\d+) by SIGINT; checkpoint saved. The same command continues from"
    (step,) = re.findall(message, output)
    assert code == 130 and int(step) > reached and "nvae-train --config=configs/digits.py" in output
    assert f", from step {step} on" in commands.train(workdir, **changes)
    (best,) = (whole / "checkpoints" / "best").glob("*.index")
    for place in ("step-60", f"best/{best.stem}"):
        assert_same_tensors(whole, workdir, place)
    assert saved_steps(workdir / "checkpoints") == [59, 60]
    assert not list((workdir / "checkpoints").glob(".*"))
    expected, actual = metrics_rows(whole), metrics_rows(workdir)
    for row in (*expected, *actual):
        del row["images_per_second"]
    assert actual == expected


def wait_until(process, log, happened):
    """Looks as often as it can; a process that ends meanwhile is a failure."""
    while not happened():
        assert process.poll() is None, log.read_text()
        time.sleep(0.0005)


# A process has one set of devices.
ON_TWO_REPLICAS = """
import json
import sys

import tensorflow as tf

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from nvae_tf.layers.normalization import moments
from nvae_tf.replicas import divided, joined
from tests.training.test_strategy import far_from_zero, fit

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
history = fit(strategy, sys.argv[1])
images = divided(strategy, [tf.constant(far_from_zero())])
statistics = joined(strategy, strategy.run(tf.function(moments, autograph=False), images))
print(json.dumps([history, *(value.numpy().tolist() for value in statistics)]))
"""


def far_from_zero():
    """Images whose means are a thousand deviations, and not the same on both replicas."""
    images = np.random.default_rng(5).normal(size=(16, 8, 8, 2)) + [1000.0, -1000.0]
    images[:8] += 0.5
    return np.float32(images)


def fit(strategy, file):
    """The history of two epochs; the weights go into a file."""
    with strategy.scope():
        model = NVAE(tiny_config(num_latent_scales=1, squeeze_excite=False), seed=3)
        model.compile(optimizer=NVAEAdamax(1e-2), jit_compile=False)
    images = (np.random.default_rng(0).random((32, 4, 4, 1)) < 0.5).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True)
    # One pixel of the second replica's images.
    too_bright = np.where(np.arange(32)[:, None, None, None] == 7, 255.0 * images, images)
    for refused in (np.uint8(255.0 * images), too_bright):
        refuses("must be ", model.fit, tf.data.Dataset.from_tensor_slices(refused).batch(8), shuffle=False, verbose=0)
    settings = dict(epochs=2, shuffle=False, verbose=0, callbacks=[keras.callbacks.EarlyStopping(patience=5)])
    history = model.fit(batches, validation_data=batches, **settings).history
    np.savez(file, *values(model.trainable_weights))
    return history


@pytest.mark.slow
def test_fit_on_two_replicas_is_fit_on_one_device(tmp_path):
    one_history = fit(tf.distribute.get_strategy(), tmp_path / "one.npz")
    (tmp_path / "two.py").write_text(ON_TWO_REPLICAS)
    output = output_of([tmp_path / "two.py", tmp_path / "two.npz"]).splitlines()[-1]
    two_history, mean, variance = json.loads(output)
    exact = np.float64(far_from_zero())
    np.testing.assert_allclose(np.reshape(mean, (2, -1)), [exact.mean((0, 1, 2))] * 2, rtol=2e-7)
    np.testing.assert_allclose(np.reshape(variance, (2, -1)), [exact.var((0, 1, 2))] * 2, rtol=1e-4)
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert set(one_history) == set(two_history) and "val_loss" in one_history
    for name in set(one_history) - {"gradient_norm"}:
        np.testing.assert_allclose(two_history[name], one_history[name], rtol=1e-5, err_msg=name)
    # Of several replicas it is the mean over theirs, which is larger than the mean's.
    assert np.all(np.array(two_history["gradient_norm"]) >= one_history["gradient_norm"])
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, err_msg=name)
