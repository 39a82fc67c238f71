import json

import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.runs.checkpoints import named_weights, nested
from nvae_tf.runs.run_folder import RunFolder, read_run_config
from tests.command_fixtures import saved_steps, score_of


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory):
    """A run in two parts, of which the first alone keeps the best, and the steps in `best` after each of them."""
    workdir = tmp_path_factory.mktemp("runs") / "averaged"
    kept = []
    for steps, keep_best in ((40, True), (60, False)):
        changes = {"train__steps": steps, "train__keep_best": keep_best, "optimizer__ema_momentum": 0.9}
        commands.train(workdir, **changes)
        kept.append(saved_steps(workdir / "checkpoints" / "best"))
    return workdir, kept


def nelbo(workdir, model):
    spec = read_run_config(RunFolder(workdir)).data
    source = load_split(spec, "test")
    evaluator = LikelihoodEvaluator(model, batch_size=100)
    return evaluator.evaluate(iterate(evaluation_batches(source, spec, 100, 0), source), 0).nelbo_nats


@pytest.mark.slow
def test_the_best_is_kept_only_where_it_is_asked_for(run):
    workdir, kept = run
    assert score_of(workdir, 40) < score_of(workdir, 20)
    assert kept == [[40], [40]] and saved_steps(workdir / "checkpoints") == [40, 60]


@pytest.mark.slow
def test_training_evaluates_the_averages(run):
    workdir, _ = run
    loaded = nvae_tf.load(workdir)
    assert nelbo(workdir, loaded) == pytest.approx(score_of(workdir, 60), rel=1e-5)
    weights = nested(named_weights(loaded))
    tf.train.Checkpoint(model=weights).read(str(workdir / "checkpoints" / "step-60")).expect_partial()
    assert abs(nelbo(workdir, loaded) - score_of(workdir, 60)) > 1e-3 * score_of(workdir, 60)


@pytest.mark.slow
def test_the_commands_take_the_checkpoint_that_is_asked_for(done, run, tmp_path):
    workdir, _ = run
    flags = [f"--workdir={workdir}", "--checkpoint=best"]
    assert "best checkpoint, step 40, " in done("train.evaluate", *flags, "--metrics=elbo")
    metrics = json.loads((workdir / "evaluation.json").read_text())
    assert (metrics["checkpoint"], metrics["step"]) == ("best", 40)
    assert metrics["weights"] == "exponential moving averages (EMA) of the weights"
    assert metrics["nelbo_nats"] == pytest.approx(score_of(workdir, 40), rel=1e-5)
    output = tmp_path / "samples.png"
    assert f"from step 40, in {output}" in done("train.generate", *flags, f"--output={output}", "--count=2")
