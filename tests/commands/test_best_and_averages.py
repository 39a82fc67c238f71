import json

import pytest

from tests.command_fixtures import saved_steps, score_of


@pytest.mark.slow
def test_the_best_is_kept_where_it_is_asked_for_and_found_by_commands(commands, done, tmp_path):
    workdir, kept = tmp_path / "averaged", []
    for steps, keep_best in ((40, True), (60, False)):
        changes = {"train__steps": steps, "train__keep_best": keep_best, "optimizer__ema_momentum": 0.9}
        commands.train(workdir, **changes)
        kept.append(saved_steps(workdir / "checkpoints" / "best"))
    assert score_of(workdir, 40) < score_of(workdir, 20)
    assert kept == [[40], [40]] and saved_steps(workdir / "checkpoints") == [40, 60]
    flags = [f"--workdir={workdir}", "--checkpoint=best"]
    assert "best checkpoint, step 40, " in done("train.evaluate", *flags, "--metrics=elbo")
    metrics = json.loads((workdir / "evaluation.json").read_text())
    assert (metrics["checkpoint"], metrics["step"]) == ("best", 40)
    # Training has evaluated the averages too.
    assert metrics["weights"] == "exponential moving averages (EMA) of the weights"
    assert metrics["nelbo_nats"] == pytest.approx(score_of(workdir, 40), rel=1e-5)
    output = tmp_path / "samples.png"
    assert f"from step 40, in {output}" in done("train.generate", *flags, f"--output={output}", "--count=2")
