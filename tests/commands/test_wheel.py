import os
import pathlib
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests import ROOT
from tests.command_fixtures import CONSOLE_NAMES, TINY, config_flags

# The --help of all commands, each in a fork of a process with what they share; none of them imports TensorFlow.
ALL_HELP = """
import importlib.metadata, os, sys
import nvae_tf.command_line
for point in importlib.metadata.entry_points(group="console_scripts"):
    if point.name.startswith("nvae-"):
        print("== help of", point.name, flush=True)
        if not os.fork():
            sys.argv = [point.name, "--help"]
            sys.exit(point.load()())
        assert os.wait()[1] == 0, point.name
"""


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NVAE_TF_"))}
    settings = {"cwd": cwd, "env": environment, "capture_output": True, "text": True, "timeout": 600}
    process = subprocess.run([str(word) for word in command], **settings)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, because a build leaves folders behind; with what is not committed yet."""
    source, folder = tmp_path_factory.mktemp("source") / "nvae_tf", tmp_path_factory.mktemp("wheel")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """The commands of an environment that has the wheel, and from this one all that it depends on."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=ROOT)
    paths = {"base": str(environment), "platbase": str(environment)}
    site = pathlib.Path(sysconfig.get_path("purelib", vars=paths))
    target = ("--python", environment / "bin" / "python", "install", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", *target, wheel, cwd=ROOT)
    # Looked in after the environment's own packages. The editable installation of this checkout
    # has a .pth file of its own there, which is not read.
    places = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(places) + "\n")
    return environment / "bin"


@pytest.mark.slow
def test_there_is_one_package_with_everything_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith("top_level.txt"))
        assert archive.read(top_level).decode().split() == ["nvae_tf"]
    tracked = run("git", "ls-files", "nvae_tf", "train", "export", "configs", cwd=ROOT).splitlines()
    here = {name if name.startswith("nvae_tf/") else f"nvae_tf/{name}" for name in tracked if (ROOT / name).is_file()}
    assert here - set(names) == set()


@pytest.mark.slow
def test_the_commands_work_in_a_folder_with_names_like_ours(bin_folder, tmp_path):
    (tmp_path / "train.py").write_text("raise AssertionError('a file of the user was imported')\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("raise AssertionError('a file of the user was imported')\n")
    never = {f"train.{name}_every_steps": 100 for name in ("evaluate", "sample")}
    smallest = {"train.steps": 2, "model.num_groups_per_scale": 1, "model.squeeze_excite": False}
    settings = config_flags(TINY | never | smallest)
    run(bin_folder / "nvae-train", "--config=digits", "--workdir=runs/mine", *settings, cwd=tmp_path)
    run(bin_folder / "nvae-export", "--workdir=runs/mine", "--output=models/mine", cwd=tmp_path)
    # The model that comes with the package.
    run(bin_folder / "nvae-generate", "--workdir=digits", "--output=digits.png", cwd=tmp_path)
    for name in ("digits.png", "models/mine/1/saved_model.pb"):
        assert (tmp_path / name).is_file(), name
    _, *helps = run(bin_folder / "python", "-P", "-c", ALL_HELP, cwd=tmp_path).split("== help of ")
    assert {text.split()[0] for text in helps} == {name for name in CONSOLE_NAMES.values() if name.startswith("nvae-")}
    assert [name for name, _, text in (each.partition("\n") for each in helps) if f"{name} " not in text] == []
