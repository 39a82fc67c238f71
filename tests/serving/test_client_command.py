import json
import re

import numpy as np
import pytest
from PIL import Image

from export.client import class_numbers
from tests.serving.model_servers import PROTOCOLS


@pytest.fixture
def ask(local, done):
    def run(name, *flags, protocol="grpc"):
        rest = ["--rest"] if protocol == "rest" else []
        where = [f"--server={getattr(local, protocol)}", "--model=tiny", *rest]
        return done("export.client", name, *where, *flags)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pictures_go_through_the_model_and_come_back(ask, run, tmp_path, protocol):
    pictures, latents = tmp_path / "new" / "pictures", tmp_path / "other" / "latents.npz"
    ask("sample", f"--output={pictures}/", "--count=3", "--seed=4", "--batch_rows=2", protocol=protocol)
    files = [pictures / f"sample_0000{number}.png" for number in range(3)]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    expected = run("sample", seed=4 + np.arange(3) * 2**32, temperature=np.ones(3, np.float32))["image"]
    assert np.abs(pixels - expected * 255).max() < 0.51

    ask("encode", f"--images={pictures.parent}", f"--output={latents}", protocol=protocol)
    given = {"image": (pixels / 255).astype(np.float32), "seed": 1 + np.arange(3) * 2**32}
    with np.load(latents) as written:
        np.testing.assert_allclose(written["latent"], run("encode", **given)["latent"], atol=1e-4)
        assert written["names"].tolist() == [f"pictures/{file.name}" for file in files]
    ask("decode", f"--latents={latents}", f"--output={tmp_path / 'decoded.png'}", protocol=protocol)
    ask("reconstruct", f"--images={pictures}", f"--output={tmp_path / 'again.png'}", protocol=protocol)
    decoded, again = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("decoded.png", "again.png"))
    assert decoded.shape == again.shape and np.abs(decoded - again).max() <= 1

    printed = ask("score", f"--images={pictures}", f"--output={tmp_path / 'scores.json'}", protocol=protocol)
    nats = run("score", **given)["nats"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    np.testing.assert_allclose([row["nats"] for row in scores], nats, rtol=1e-5)
    assert printed.count("\n") == 5 and f"{nats.mean():.3f}" in printed.splitlines()[-1]
    printed = ask("status", protocol=protocol)
    assert printed.startswith("version 3: AVAILABLE\nsignatures of version 3:\n")
    assert re.search(r"  sample +seed int64\[\?\], temperature float32\[\?\] -> image float32\[\?, 8, 8, 3\]", printed)


@pytest.mark.slow
def test_labels_are_numbers_or_names_of_classes(conditional_folder):
    assert class_numbers(["1", "-1"], None) == [1, -1]
    assert class_numbers(["eel", "cat", "1", "-1"], str(conditional_folder)) == [2, 0, 1, -1]
    for export, message in ((None, "with --export=DIR"), (str(conditional_folder), "'dg'.*did you mean 'dog'")):
        with pytest.raises(ValueError, match=f"--labels = .*{message}"):
            class_numbers(["dg"], export)


def test_a_refused_job_writes_nothing(local, tmp_path, refused):
    Image.new("RGB", [9, 8]).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    encode = ["encode", f"--server={local.grpc}", f"--output={tmp_path / 'x.npz'}"]
    for file, message in (("wide.png", "wide.png is 8x9x3, the model takes 8x8x3"), ("text.png", "not a picture")):
        assert message in refused("export.client", *encode, "--model=tiny", f"--images={tmp_path / file}")
    assert "model 'digits'" in refused("export.client", *encode, "--model=digits", f"--images={tmp_path / 'wide.png'}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.png", "wide.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the command of nvae-client = '': not one of the commands (sample, encode"),
        (["sample", "--model=x"], "--output is missing"),
        (["status", "--model=x", "--count=3"], "Unknown command line flag 'count'"),
        (["sample", "--model=x", "--output=a.jpg"], "--output=a.jpg: give the name of a file *.png or a folder"),
        (["sample", "--model=x", "--output={0}/"], "is there already; give another name, or --overwrite"),
        (["decode", "--model=x", "--output=a.png", "--latents={0}/other.npz"], "or not a file of latents (it has w"),
    ],
)
def test_mistakes_are_reported_in_one_line(refused, tmp_path, arguments, message):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    assert message in refused("export.client", *(argument.format(tmp_path) for argument in arguments))
