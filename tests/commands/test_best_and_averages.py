import json

import pytest

from tests.command_fixtures import saved_steps, score_of


@pytest.mark.slow
def test_the_best_checkpoint_with_averages_is_found_by_commands(commands, done, tmp_path):
    workdir = tmp_path / "averaged"
    commands.train(workdir, train__steps=40, optimizer__ema_momentum=0.9)
    assert saved_steps(workdir / "checkpoints" / "best") == [40] and score_of(workdir, 40) < score_of(workdir, 20)
    flags = [f"--workdir={workdir}", "--checkpoint=best"]
    assert "best checkpoint, step 40, " in done("train.evaluate", *flags, "--metrics=elbo")
    metrics = json.loads((workdir / "evaluation.json").read_text())
    # Training has evaluated the averages too.
    assert metrics["weights"] == "exponential moving averages (EMA) of the weights"
    assert metrics["nelbo_nats"] == pytest.approx(score_of(workdir, 40), rel=1e-5)
    output = tmp_path / "samples.png"
    assert f"from step 40, in {output}" in done("train.generate", *flags, f"--output={output}", "--count=2")
