import os

import numpy as np
import pytest
from PIL import Image

from nvae_tf.errors import exit_on_user_error
from tests import ROOT
from tests.command_fixtures import CONSOLE_NAMES

# Access is denied to root, too.
UNWRITABLE = """
import importlib, os, sys
os.access = lambda place, mode: False
try:
    importlib.import_module(f"train.{sys.argv.pop(1)}").run()
finally:
    print("tensorflow" in sys.modules)
"""


@pytest.mark.parametrize("command", ["main --config=digits --workdir={}/new/run", "evaluate --workdir={}"])
def test_a_place_that_cannot_be_written_to_is_reported_at_once(commands, tmp_path, command):
    (tmp_path / "config.json").write_text("{}")
    process = commands.run(["-c", UNWRITABLE, *command.format(tmp_path).split()])
    assert process.returncode == 2 and process.stdout == "False\n", process.stderr
    (line,) = process.stderr.splitlines()
    assert f": nothing can be written in {tmp_path}; make that folder writable" in line and line.startswith("error: --")


NEW_RUN = "train.main --config=digits --workdir={0}/new --config."
DIGITS, EVALUATE = " --workdir=digits --output=x.png", "train.evaluate --workdir={0} --metrics="
RESTORE, VARY = f"train.generate restore{DIGITS} ", f"train.generate vary{DIGITS} "
IMPORT, TFLITE = "export.import_torch_checkpoint --checkpoint={0}/", "export.export_tflite --signature="
NO_RUN = "nowhere: no such folder; give a run folder of nvae-train"
# Commands with the folder of the test at {0}, and part of the line that is printed.
MISTAKES = [
    ("train.main --config=digits --workdir=x --batch_size=4", "--batch_size: no such flag; did you mean --config."),
    ("train.main --workdir=x", "--workdir=x: no run to continue, there is no x/config.json; to begin one, give its"),
    ("train.main --config=digits --workdir=x more", "'more': not a flag"),
    ("train.main --config=tests --workdir=x", "--config=tests: no such preset or file"),
    ("train.main --config={0}/mine.py --workdir=x", "mine.py: get_config returns 5"),
    ("train.main --config=digits --workdir=x --total_steps=5", "Unknown command line flag 'total_steps'"),
    (NEW_RUN + "train.batch_sise=3", "did you mean --config.train.batch_size?"),
    ("train.main --config=own_images --workdir={0}/new --config.size=", "setting size = '': not one of the choices"),
    (NEW_RUN + "recipe=quick", "setting recipe = 'quick': not one of the choices (published, efficient)"),
    ("train.main --workdir=x --config.recipe=efficient", "--config.recipe: a recipe changes a preset or a file of"),
    (NEW_RUN + "size=huge", "setting size = 'huge': not one of the choices (tiny, small, medium, published)"),
    (NEW_RUN + "train.batch_size=1438", "The batch size is 1438, and there are 1437 training images"),
    ("train.launch --processes=2 -- --config=digits", "--workdir is missing"),
    ("train.launch --processes=2 -- --config.train.batch_sise=2 --workdir=x", "--config.train.batch_size"),
    ("train.launch --workdir=x", "--workdir=x: flags of nvae-train stand after a --; for example `nvae-launch --proc"),
    ("train.estimate --config=own_images", "data.path"),
    ("train.evaluate --workdir={0} --import=no_such", "--import=no_such: not imported (No module named 'no_such')"),
    ("train.evaluate --workdir=nowhere", NO_RUN),
    (EVALUATE + "elbo,wi", "--metrics = 'wi': not one of the choices (elbo, iw"),
    ("train.evaluate --workdir={0} --temperature=0.7", "--temperature belongs to metric fid or frechet"),
    (EVALUATE + "frechet", "--metrics=frechet: give --extractor=MODULE:FUNCTION"),
    (EVALUATE + "fid,frechet", "measure two by two commands"),
    ("train.report nowhere --output={0}/there.html", "there.html: is there already; give another name"),
    ("train.generate recnostruct --workdir={0}", "not one of the modes (sample, reconstruct"),
    ("train.generate sample --workdir={0} --raw --output=x.svg", "a bare grid is a .png file"),
    ("train.generate reconstruct --workdir={0} --output=x.png --cuont=3", "Did you mean: count ?"),
    ("train.generate reconstruct --workdir={0} --output=x.png --input=no", "no such file or folder of pic"),
    ("train.generate reconstruct --workdir={0} --output=x.png --input=x --indices=3", "--indices: give one of them"),
    ("train.generate vary --workdir={0} --output=x.png --variants=0", "--variants=0"),
    ("train.generate vary --workdir={0} --output={0}/mine.py/x.png", "mine.py is a file, not a folder"),
    ("train.generate vary --workdir={0} --output={0}/new/ --indices=3,3", "two pictures would be called 3.png"),
    ("train.generate interpolate" + DIGITS, "between which images?"),
    ("train.generate --count=many" + DIGITS, "--count=many: 'many' is no whole number"),
    ("train.generate --temperature=0.8,warm" + DIGITS, "'warm' is no number"),
    ("export.client sample --model=x --output={0}/big.png", "big.png: is there already; give another name, or --ov"),
    (RESTORE + "--scale=2 --blur=1", "--scale and --blur: give one"),
    (RESTORE, "give --mask, --scale or --blur, or --noise alone"),
    ("train.generate decode --workdir=digits --output=x.png --input=no.npz", "no.npz: no such file of latents"),
    ("train.generate features --workdir=digits --output=x.npz --groups=3", "groups = 3: must be a whole number from 0"),
    ("train.publish --workdir=digits --repo=tiny", "'tiny' is not the name of a repository"),
    ("train.publish --workdir=digits --repo=me/a--b", "repo 'me/a--b': Cannot have -- or .. in repo_id"),
    ("train.publish --workdir=tests --repo=me/tiny", "tests: not a run folder"),
    (EVALUATE + "elbo --importance_samples=3", "--importance_samples belongs to metric iw, which --metrics lacks"),
    (RESTORE + "--mask={0}/big.png", "big.png: is 64x64 (height x width), not 16x16: --config.data.resize=crop or "),
    (VARY + "--resize=crop", "--resize is for pictures of --input; the data set's images come as trained"),
    ("train.generate encode --workdir=digits --output=x.npz --convert", "--convert is for pictures of --input"),
    ("train.generate reconstruct --input=x --data_path=y" + DIGITS, "--input and --data_path: give one of them"),
    (IMPORT + "none.pt --output={0}/new", "none.pt: no such file"),
    (IMPORT + "x.pt --output={0}/full", "not an empty folder; name a new"),
    (IMPORT + "x.pt --output={0}/x.pt/below", "is a file"),
    (IMPORT + "x.pt --output={0}/new --report={0}/x.pt", "exists already"),
    (IMPORT + "x.pt --output={0}/new --report={0}/new/map.csv", "in the way of"),
    (IMPORT + "x.pt --output={0}/new/run --report={0}/new", "in the way of"),
    ("export.verify {0}/models/1 more", "'more': not a flag"),
    ("export.export_saved_model --workdir={0}/run --output={0}/new", "/run: no such folder"),
    ("export.export_saved_model --workdir=none --output={0}/models", "has a version 1 already"),
    ("export.export_onnx --workdir=digits --output={0}/full", "full: not an empty folder; name a new or empty one"),
    (TFLITE + "decode --workdir=x --output=y --smallest_psnr=nan", "--smallest_psnr = nan: must be"),
    (TFLITE + "decode --output=y", "give one of --workdir and --saved_model"),
    (TFLITE + "sample --output=y --workdir=x --quantize=int8", "would be clipped"),
    (TFLITE + "decode --workdir=x --page=", "give --output and --signature, or --page alone"),
    (TFLITE + "decode --workdir=x --page=y", "give --output and --signature, or --page alone"),
    ("export.export_tflite --workdir=digits --page={0}/full", "full: not an empty folder; name a new or empty one"),
    (TFLITE + "decode --output=y --saved_model={0}/models/1", "no saved_model.pb in it"),
    ("export.client", "the command of nvae-client = '': not one of the commands (sample, encode"),
    ("export.client sample --model=x", "--output is missing"),
    ("export.client status --model=x --count=3", "Unknown command line flag 'count'"),
    ("export.client sample --model=x --output=a.jpg", "--output=a.jpg: give the name of a file *.png or a folder"),
    ("export.client sample --model=x --output={0}/", "is there already; give another name, or --overwrite"),
    ("export.client decode --model=x --output=a.png --latents={0}/other.npz", "or not a file of latents (it has w"),
    # Commands that write into the run folder need one of the user's own.
    ("train.evaluate --workdir=hf://me/tiny@v2", "`hf download me/tiny --local-dir=runs/tiny --revision=v2`"),
    ("train.evaluate --workdir=digits", "make one by `cp -r "),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(commands, refused, command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for folder in ("full", "models/1"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("config.json", "there.html", "x.pt", "full/notes.txt"):
        (tmp_path / file).touch()
    (tmp_path / "mine.py").write_text("def get_config():\n    return 5\n")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    Image.new("L", (64, 64)).save(tmp_path / "big.png")
    before = sorted(tmp_path.rglob("*"))
    name, *flags = command.format(tmp_path).split()
    # A training chooses devices, which a process does once.
    is_training = command.startswith(NEW_RUN)
    assert message in (commands.refused_process(["-m", name, *flags]) if is_training else refused(name, *flags))
    assert sorted(tmp_path.rglob("*")) == before


HELP = """
import atexit, runpy, sys
atexit.register(lambda: print("numpy" in sys.modules, "tensorflow" in sys.modules))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train.main", "--config= --workdir train.batch_size"),
        ("train.evaluate", "--workdir= --metrics"),
        ("train.generate vary", "--workdir= --checkpoint --output --overwrite --seed --input --variants"),
        ("train.report", "--workdir= --output --checkpoint --overwrite --seed --data_path"),
        ("train.launch", "--processes"),
        ("train.demo", "--workdir="),
        ("export.export_saved_model", "--workdir= --weights outlier_score TensorFlow Serving"),
        ("export.client", "status --server reconstruct PNG COMMAND --help"),
    ],
)
def test_help_is_a_manual_page_and_does_not_wait_for_tensorflow(commands, name, words):
    printed = commands.output_of(["-c", HELP, *name.split(), "--help"])
    module, *mode = name.split()
    command = " ".join([CONSOLE_NAMES.get(f"nvae_tf.{module}", f"python -m {module}"), *mode])
    assert f"{command} {words.split()[0]}" in printed and "Exit code: " in printed
    assert [word for word in words.split() if word not in printed] == []
    assert printed.endswith("False False\n" if name == "train.launch" else " False\n")
    if name == "train.generate vary":
        # The flags of this mode alone.
        assert "\n  --variants\n" in printed and "--steps" not in printed


def test_an_installed_command_explains_its_flags_also_to_a_reader_who_has_gone(commands):
    command = ["-c", "from train.prior import run; run()", "--help"]
    assert "\n  --proposals\n" in commands.output_of(command)
    reading, writing = os.pipe()
    os.close(reading)
    assert commands.run(command, stdout=writing, capture_output=False).returncode == 0


def test_a_users_mistake_is_one_line_and_the_traceback_is_there_for_those_who_ask_and_for_bugs(capsys, monkeypatch):
    monkeypatch.delenv("NVAE_TF_TRACEBACK", raising=False)
    for error in (ValueError, FileNotFoundError, ConnectionError, PermissionError):
        with pytest.raises(SystemExit) as exit_, exit_on_user_error():
            raise error("no such thing")
        assert exit_.value.code == 2 and capsys.readouterr().err == "error: no such thing\n"
    with pytest.raises(SystemExit), exit_on_user_error():
        open("missing.nvc")
    assert capsys.readouterr().err == "error: missing.nvc: No such file or directory\n"
    with pytest.raises(TypeError), exit_on_user_error():
        raise TypeError("a bug")
    monkeypatch.setenv("NVAE_TF_TRACEBACK", "1")
    with pytest.raises(SystemExit), exit_on_user_error():
        raise ValueError("no such thing")
    assert "Traceback" in capsys.readouterr().err
