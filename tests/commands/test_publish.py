import numpy as np
import pytest

from nvae_tf import command_line
from nvae_tf.generation.image_grid import read_images
from tests.command_fixtures import output_of, quiet
from tests.hub_server import TOKEN, HubServer


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.close()


@pytest.mark.slow
def test_a_run_goes_to_the_hub_and_back_and_the_token_is_in_no_file_or_output(finished_run, hub, done, tmp_path):
    workdir, home = finished_run[0], tmp_path / "home"
    environment = {"env": quiet() | hub.environment(home), "anew": True}
    printed = output_of(["-m", "train.publish", f"--workdir={workdir}", "--repo=me/tiny"], **environment)
    assert f"Published {workdir}, step 60: {hub.endpoint}/me/tiny (" in printed
    assert 'without scores: nvae-evaluate has not measured this checkpoint). nvae_tf.load("hf://me/tiny")' in printed
    names = set(hub.files("me/tiny"))
    assert {"config.json", "README.md", "metrics.csv", "environment.json", "checkpoints/step-60.index"} <= names
    assert [name for name in names if name.startswith("samples/")] == ["samples/step-00000060.png"]
    drawing = ["--count=4", "--raw", "--seed=3"]
    words = ["-m", "train.generate", "--workdir=hf://me/tiny", f"--output={tmp_path / 'hub.png'}", *drawing]
    printed += output_of(words, **environment)
    done("train.generate", f"--workdir={workdir}", f"--output={tmp_path / 'own.png'}", *drawing)
    one, other = (read_images(tmp_path / f"{name}.png", 4, 2).astype(int) for name in ("hub", "own"))
    # Another thread count of the other process may round another way.
    assert one.shape == (4, 4, 4, 1) and np.abs(one - other).max() <= 1
    files = [*home.rglob("*"), *tmp_path.glob("*.png"), *workdir.rglob("*")]
    contents = [file.read_bytes() for file in files if file.is_file()] + list(hub.files("me/tiny").values())
    assert len(contents) > 20 and not [content for content in contents if TOKEN.encode() in content]
    assert TOKEN not in printed


def test_a_repository_that_is_no_run_is_named_as_it_was_given(hub, monkeypatch, tmp_path):
    hub.repos["me/other"] = [{"README.md": b"a model"}]
    hub.use_here(monkeypatch, tmp_path / "home")
    with pytest.raises(FileNotFoundError, match="--workdir=hf://me/other: not a run folder, it has no config.json"):
        command_line.run_folder("hf://me/other")
