"""End-to-end demo in minutes: trains on digits, evaluates, samples, exports, samples from the export and serves it.

    python -m train.demo --workdir=runs/demo

Each step is a command that you could type. What is finished is not done again, so a second call is quick, and an
interrupted one continues. Images and numbers are in the run folder.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted; otherwise the code of the step that failed.
"""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from typing import Annotated

import numpy as np
from PIL import Image

from nvae_tf import command_line, presets
from nvae_tf.generation.image_grid import image_grid, read_images
from nvae_tf.progress import duration

_TEMPERATURE = 1.0
_METRICS = "--metrics=elbo,iw,latents --importance_samples=100"
_DRAWING = f"--temperature={_TEMPERATURE} --seed=1 --count=64"
_EXPORTED = f"export/run_saved_model.py --saved_model={{workdir}}/saved_model/1 {{output}} {_DRAWING}"
# Title, last file in the run folder, and command of each step; the first makes what the others need.
_STEPS = (
    ("Train", "checkpoints/step-{total}.index", "-m train.main --config=configs/digits.py {run}"),
    ("Evaluate on the test images", "evaluation.json", f"-m train.evaluate {{run}} {_METRICS}"),
    ("Draw samples", "samples.png", f"-m train.generate {{run}} {{output}} {_DRAWING}"),
    ("Reconstruct test images", "reconstructions.png", "-m train.generate reconstruct {run} {output}"),
    ("Fit a simple baseline", "baseline.json", "-m examples.digits mixture_of_bernoullis --components=120 {json}"),
    ("Ask a classifier of real digits about the samples", "quality.json", "-m examples.digits quality {run} {json}"),
    ("Write a page about the run", "report.html", "-m train.report {run}"),
    ("Export", "saved_model/1/saved_model.pb", "-m export.export_saved_model {run} --output={workdir}/saved_model"),
    ("Draw with the export, by a script that does not need nvae_tf", "exported_samples.png", _EXPORTED),
    (
        "Serve the export for a moment, and ask it for samples by gRPC and by REST",
        "served_rest.png",
        "-m export.serve --path={workdir}/saved_model --port=0 --rest_port=0 --samples={workdir}",
    ),
)


def steps(workdir: pathlib.Path) -> list[tuple[str, list[str], pathlib.Path]]:
    """The title, the arguments of `python`, and the last file that it writes, which shows that it is done, of all."""
    plan, total = [], presets.preset("digits").train.steps
    for title, output, command in _STEPS:
        file = workdir / output.format(total=total)
        words = {"run": f"--workdir={workdir}", "output": f"--output={file}", "json": f"--json={file}"}
        plan.append((title, [word.format(workdir=workdir, **words) for word in command.split()], file))
    return plan


def main(workdir: Annotated[str, "Run folder of the demo."] = "runs/demo") -> None:
    """Runs the unfinished steps, and prints the results."""
    started, plan = time.monotonic(), steps(pathlib.Path(workdir))
    for number, (title, arguments, output) in enumerate(plan, 1):
        heading = f"[{number}/{len(plan)}] {title}"
        if output.exists() and output.stat().st_mtime >= plan[0][2].stat().st_mtime:
            print(f"{heading}: done before, {output}", flush=True)
            continue
        print(f"\n{heading}\n$ python {shlex.join(arguments)}", flush=True)
        # The output may be of an earlier training; an export is its whole folder.
        output.unlink(missing_ok=True)
        if output.name == "saved_model.pb":
            shutil.rmtree(output.parent, ignore_errors=True)
        _run(arguments)
    print(f"\n{summary(pathlib.Path(workdir))}\nAll this in {duration(time.monotonic() - started)}.", flush=True)


def _run(arguments: list[str]) -> None:
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = process.wait() or 130  # Ctrl-C has reached the step too, which saves what it has
    if code:
        print(f"The step ended with exit code {code}; the same command continues from here.", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def summary(workdir: pathlib.Path) -> str:
    """The results: the scores, and where the images are."""
    names = ("evaluation", "baseline", "quality")
    scores, baseline, quality = (json.loads((workdir / f"{name}.json").read_text()) for name in names)
    files = ("samples.png", "exported_samples.png", "served_grpc.png", "served_rest.png", "reconstructions.png")
    # The images of the figure in a bare grid, as the export writes it.
    own = image_grid(read_images(workdir / files[0], 16, 8)[..., :1] / 255.0, enlarge=None)[..., 0].astype(np.int32)
    difference = max(int(np.abs(own - np.asarray(Image.open(workdir / name))).max()) for name in files[1:4])
    return f"""\
test images, NELBO                     {scores["nelbo_nats"]:7.2f} nats
  importance-weighted, {scores["importance_samples"]:4d} samples    {scores["importance_weighted_nats"]:7.2f} nats
  mixture of {baseline["components"]:3d} Bernoullis (baseline) {baseline["test_nats"]:7.2f} nats
classifier: confidence, real test digits  {quality["confidence_on_real"]:.3f}
  samples at temperature {_TEMPERATURE}              {quality["confidence_on_samples"]:.3f}
  samples of each digit 0-9: {quality["samples_per_class"]}
export, alone and served, against model: largest difference of a pixel: {difference} of 255
images:   {", ".join(str(workdir / name) for name in files)}
page:     {workdir / "report.html"}
export:   {workdir / "saved_model" / "1"}
explore:  .venv/bin/nvae-serve --path={workdir / "saved_model"} --explore"""


run = command_line.command(main)
