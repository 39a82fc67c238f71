"""The client's command: files in, files out, and what it says to mistakes."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nvae_tf.serving import served_model as client_files
from tests.serving.model_servers import CLIENTS, free_port

pytest_plugins = ("tests.serving.serving_fixtures",)
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def ask(local, script):
    """Runs a command against the server of this repository; gives what it prints."""

    def run(name, *flags, protocol="grpc"):
        rest = ["--rest"] if protocol == "rest" else []
        where = [f"--server={getattr(local, protocol)}", "--model=tiny", *rest]
        code, printed, errors = script("client", name, *where, *flags)
        assert code == 0, errors
        return printed

    return run


@pytest.mark.parametrize("protocol", sorted(CLIENTS))
def test_pictures_go_through_the_model_and_come_back(ask, run, tmp_path, protocol):
    pictures, latents = tmp_path / "new" / "pictures", tmp_path / "latents.npz"
    ask("sample", f"--output={pictures}/", "--count=3", "--seed=4", "--batch_rows=2", protocol=protocol)
    files = sorted(pictures.iterdir())
    assert [file.name for file in files] == ["sample_00000.png", "sample_00001.png", "sample_00002.png"]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    seeds = 4 + np.arange(3) * 2**32
    expected = run("sample", seed=seeds, temperature=np.ones(3, np.float32))["image"]
    assert np.abs(pixels - expected * 255).max() < 0.51

    ask("encode", f"--images={pictures}", f"--output={latents}", protocol=protocol)
    images = (pixels / 255).astype(np.float32)
    ones = 1 + np.arange(3) * 2**32
    found = np.load(latents)["latent"]
    np.testing.assert_allclose(found, run("encode", image=images, seed=ones)["latent"], atol=1e-4)

    ask("decode", f"--latents={latents}", f"--output={tmp_path / 'decoded.png'}", protocol=protocol)
    ask("reconstruct", f"--images={pictures}", f"--output={tmp_path / 'again.png'}", protocol=protocol)
    decoded, again = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("decoded.png", "again.png"))
    assert decoded.shape == again.shape and np.abs(decoded - again).max() <= 1
    ask("reconstruct", f"--images={files[1]}", f"--images={files[0]}", f"--output={tmp_path}/two/", protocol=protocol)
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == ["sample_00000.png", "sample_00001.png"]

    printed = ask("score", f"--images={pictures}", f"--output={tmp_path / 'scores.json'}", protocol=protocol)
    scores = json.loads((tmp_path / "scores.json").read_text())
    nats = run("score", image=images, seed=ones)["nats"]
    np.testing.assert_allclose([row["nats"] for row in scores], nats, rtol=1e-5)
    printed = printed.splitlines()
    assert len(printed) == 5 and f"{nats.mean():.3f}" in printed[-1]
    assert not [file for file in tmp_path.rglob("*") if "partial" in file.name]


def test_status_shows_versions_and_signatures(ask):
    printed = ask("status")
    assert printed.startswith("version 3: AVAILABLE\nsignatures of version 3:\n")
    assert re.search(r"  sample +seed int64\[\?\], temperature float32\[\?\] -> image float32\[\?, 8, 8, 3\]", printed)


def test_a_refused_job_writes_nothing(local, tmp_path, refused):
    Image.new("RGB", [9, 8]).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    encode = ["encode", f"--server={local.grpc}", f"--output={tmp_path / 'x.npz'}"]
    told = refused("client", *encode, "--model=tiny", f"--images={tmp_path / 'wide.png'}")
    assert "wide.png: is 8x9 (height x width), the model takes 8x8; resize it" in told
    told = refused("client", *encode, "--model=tiny", f"--images={tmp_path / 'text.png'}")
    assert "text.png: no picture" in told
    told = refused("client", *encode, "--model=tiny", f"--images={tmp_path / 'none'}")
    assert "no such file or folder" in told
    told = refused("client", *encode, "--model=digits", f"--images={tmp_path / 'wide.png'}")
    assert "model 'digits'" in told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.png", "wide.png"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the command of export.client = '': not one of the commands (sample, encode"),
        (["smaple", "--model=x"], "not one of the commands (sample, encode, decode, reconstruct, score, status); did"),
        (["sample", "--model=x"], "--output is missing"),
        (["sample", "--modle=x"], "'modle'. Did you mean: model"),
        (["status", "--model=x", "--count=3"], "Unknown command line flag 'count'"),
        (["sample", "--model=x", "--output=a.jpg"], "--output=a.jpg: give a name in .png or DIR/"),
        (["sample", "--model=x", "--output={full}/"], "exists and is not empty"),
        (["sample", "--model=x", "--output=a.png", "--count=0"], "--count=0: 0 is not an integer"),
        (["sample", "--model=x", "--output=a.png", "--temperature=nan"], "--temperature=nan: must be above 0"),
        (["sample", "--model=x", "--output=a.png", "--seed=-1"], "--seed=-1: -1 is not an integer"),
        (["decode", "--model=x", "--output=a.png", "--latents=none.npz"], "--latents=none.npz: no such file"),
        (["status", "--model=x", "--timeout=0"], "--timeout=0.0: must be above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(refused, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    assert message in refused("client", *(argument.format(full=tmp_path) for argument in arguments))


@pytest.mark.parametrize("flags", [[], ["--rest"]])
def test_a_dead_server_is_told_in_one_line(refused, flags):
    server = f"127.0.0.1:{free_port()}"
    told = refused("client", "status", "--model=x", f"--server={server}", "--total_timeout=0.3", *flags)
    assert told.startswith(f"error: {server}, model 'x': ") and "is it running" in told


def test_help_is_a_manual_page_without_tensorflow():
    program = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--help']\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "runpy.run_module('export.client', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n") and process.stderr == ""
    for word in ("reconstruct", "--server", "--rest", "Exit code", "PNG"):
        assert word in process.stdout


def test_latents_of_both_commands_are_read(tmp_path):
    groups = [np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3), np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)]
    np.savez(tmp_path / "groups.npz", **{f"group_{number:02d}": group for number, group in enumerate(groups)})
    flat = client_files.read_latents(str(tmp_path / "groups.npz"))
    np.testing.assert_array_equal(flat, np.concatenate([group.reshape(2, -1) for group in groups], axis=1))
    client_files.write_latents(str(tmp_path / "flat.npz"), flat)
    np.testing.assert_array_equal(client_files.read_latents(str(tmp_path / "flat.npz")), flat)
    np.savez(tmp_path / "other.npz", weights=flat)
    with pytest.raises(ValueError, match="no file of latents as `encode` writes it"):
        client_files.read_latents(str(tmp_path / "other.npz"))
