import json
import os

import numpy as np
import pytest

from examples.digits import fitted_mixture
from nvae_tf.generation.image_grid import image_grid, write_png
from tests import ROOT
from train import demo

WRITTEN = {
    "evaluation.json": {"nelbo_nats": 21.5, "importance_samples": 100, "importance_weighted_nats": 21.25},
    "baseline.json": {"components": 160, "test_nats": 22.0},
    "quality.json": {"confidence_on_real": 0.91, "confidence_on_samples": 0.87, "samples_per_class": [1] * 10},
}


@pytest.fixture
def done(tmp_path, monkeypatch):
    """Lets every step leave its output without doing anything; gives the arguments of the steps that were run."""
    ran, outputs = [], {tuple(arguments): output for _, arguments, output in demo.steps(tmp_path / "demo")}

    def pretend(arguments):
        first, second, *_ = arguments
        assert (ROOT / (second.replace(".", "/") + ".py" if first == "-m" else first)).is_file(), arguments
        ran.append(arguments)
        output = outputs[tuple(arguments)]
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".png":
            # One step makes two.
            for name in {output.name, output.name.replace("rest", "grpc")}:
                write_png(output.with_name(name), image_grid(np.zeros([64, 16, 16, 1]), enlarge=None))
        else:
            output.write_text(json.dumps(WRITTEN.get(output.name, {})))

    monkeypatch.setattr(demo, "_run", pretend)
    return ran


def test_all_commands_exist_and_a_second_call_does_nothing_but_what_is_older_than_the_training(done, tmp_path, capsys):
    demo.main(str(tmp_path / "demo"))
    assert len(done) == 10
    first = capsys.readouterr().out
    for text in ("21.50 nats", "22.00 nats", "0.870", "difference of a pixel: 0 of 255", "samples.png"):
        assert text in first
    assert "$ python -m train.main --config=configs/digits.py" in first
    demo.main(str(tmp_path / "demo"))
    assert len(done) == 10
    assert capsys.readouterr().out.count("done before") == 10
    plan = demo.steps(tmp_path / "demo")
    newer = plan[0][2].stat().st_mtime + 100
    for _, _, output in plan[:4]:
        os.utime(output, (newer, newer))
    demo.main(str(tmp_path / "demo"))
    assert done[10:] == [arguments for _, arguments, _ in plan[4:]]


def test_a_failing_step_ends_the_demo_with_its_code(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(len(sys.argv))\n")
    with pytest.raises(SystemExit) as exit_:
        demo._run([str(script), "--flag"])
    assert exit_.value.code == 2
    assert "the same command continues" in capsys.readouterr().err


TRUE_MEANS = np.array([[0.9] * 6 + [0.1] * 6, [0.1] * 6 + [0.9] * 6])


def drawn(count):
    random = np.random.RandomState(0)
    components = random.choice(2, count, p=[0.3, 0.7])
    return (random.rand(count, 12) < TRUE_MEANS[components]).astype(np.float32)


def test_em_finds_the_components():
    images = drawn(4000)
    likelihoods = np.prod(np.where(images[:, None] == 1.0, TRUE_MEANS, 1.0 - TRUE_MEANS), axis=2)
    difference = fitted_mixture(images, 2)(images) + np.log(likelihoods @ [0.3, 0.7])
    assert abs(difference.mean()) < 0.01 and np.abs(difference).max() < 0.5
