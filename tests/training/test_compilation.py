"""Whether and how XLA compiles the training step, with GPUs and without."""

import csv

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import TrainConfig
from nvae_tf.training.compilation import compiles_whole_step


@pytest.fixture
def clusters():
    """`clusters()`: whether TensorFlow was told to have XLA compile parts of graphs; not so afterwards."""
    before = tf.config.optimizer.get_jit()
    tf.config.optimizer.set_jit(False)
    yield lambda: tf.config.optimizer.get_jit() == "autoclustering"
    tf.config.optimizer.set_jit(before or False)


@pytest.mark.parametrize(
    ("xla", "num_gpus", "replicas", "whole", "in_parts"),
    [
        ("auto", 0, 1, False, False),
        ("auto", 0, 2, False, False),
        ("auto", 1, 1, True, False),
        # One of them trains, or both.
        ("auto", 2, 1, True, False),
        ("auto", 2, 2, False, True),
        # Two machines of one.
        ("auto", 1, 2, False, True),
        ("off", 0, 1, False, False),
        ("off", 1, 1, False, False),
        ("off", 2, 2, False, False),
        ("jit", 0, 1, True, False),
        ("jit", 1, 1, True, False),
        ("cluster", 0, 1, False, True),
        ("cluster", 1, 1, False, True),
        ("cluster", 2, 2, False, True),
    ],
)
def test_what_is_compiled(xla, num_gpus, replicas, whole, in_parts, clusters, monkeypatch):
    monkeypatch.setattr("nvae_tf.training.compilation.gpus", lambda: [f"GPU:{index}" for index in range(num_gpus)])
    assert compiles_whole_step(xla, replicas) is whole
    assert clusters() is in_parts


@pytest.mark.parametrize("num_gpus", [0, 2])
def test_replicas_can_not_be_compiled_as_a_whole(num_gpus, clusters, monkeypatch):
    monkeypatch.setattr("nvae_tf.training.compilation.gpus", lambda: ["GPU:0", "GPU:1"][:num_gpus])
    message = r"train\.xla = 'jit': not possible with 2 replicas; set train\.xla=cluster \(or auto\)"
    with pytest.raises(ValueError, match=message):
        compiles_whole_step("jit", 2)
    assert not clusters()


def test_settings_of_training_that_can_not_be_are_told():
    for name, value, message in (
        ("xla", "on", r"train\.xla = 'on': not one of the choices \(auto, off, jit, cluster\)"),
        ("recompute", "cells", r"train\.recompute = 'cells': not one of the choices \(none, groups, all\)"),
        ("precision", "float16", r"train\.precision = 'float16': not one of .*mixed_float16\)"),
        ("accumulate_steps", 0, r"train\.accumulate_steps = 0: must be at least 1"),
        ("accumulate_steps", 5, r"train\.accumulate_steps = 5: must divide train\.batch_size = 32"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**{name: value})


def last_scores(workdir):
    with open(workdir / "metrics.csv") as file:
        return {name: float(value) for name, value in [*csv.DictReader(file)][-1].items() if "second" not in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [dict(train__xla="jit"), dict(train__xla="cluster")],
    ids=["jit", "cluster"],
)
def test_a_run_ends_near_one_that_is_not_compiled(settings, commands, finished_run, tmp_path, monkeypatch):
    # XLA writes what it compiles.
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={tmp_path / 'compiled'}")
    workdir = tmp_path / "run"
    process = commands.run(commands.tiny_training(workdir, **settings))
    assert process.returncode == 0, process.stderr
    # What follows a norm in the backward pass is compiled in any case (`cpu_kernels.on_one_cpu`); it has none.
    texts = (file.read_text(errors="replace") for file in tmp_path.glob("compiled/*.txt"))
    assert any("convolution(" in text for text in texts) == (settings["train__xla"] == "jit")
    found, expected = last_scores(workdir), last_scores(finished_run[0])
    assert found.keys() == expected.keys() and found["step"] == expected["step"] == 60
    # Its draws are others.
    assert all(np.isfinite(value) for value in found.values())
    assert found["test_nelbo_nats"] == pytest.approx(expected["test_nelbo_nats"], rel=0.15)


@pytest.mark.slow
def test_a_run_with_everything_that_saves_memory(commands, finished_run, tmp_path):
    settings = dict(train__precision="mixed_float16", train__recompute="all", train__accumulate_steps=2)
    process = commands.run(commands.tiny_training(tmp_path / "run", **settings))
    assert process.returncode == 0, process.stderr
    found, expected = last_scores(tmp_path / "run"), last_scores(finished_run[0])
    assert found["test_nelbo_nats"] == pytest.approx(expected["test_nelbo_nats"], rel=0.15)


@pytest.mark.slow
def test_replicas_are_told_that_the_whole_step_can_not_be_compiled(commands, tmp_path):
    process = commands.run(
        commands.tiny_training(tmp_path / "run", train__xla="jit", train__strategy="mirrored", train__replicas=2)
    )
    assert process.returncode == 2
    assert "train.xla = 'jit': not possible with 2 replicas" in process.stderr
    assert not (tmp_path / "run").exists()
