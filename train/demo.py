"""The whole way in some minutes: digits are learned, measured, drawn, exported, drawn by the export, and served.

    python -m train.demo --workdir=runs/demo

Each step is a command that you could type; it is shown before it runs. What is finished is not done again, so
a second call is quick, and an interrupted one goes on. The pictures and figures are in the run folder.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted; otherwise that of the step that failed.
"""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from nvae_tf import command_line
from nvae_tf.config import preset
from nvae_tf.progress import duration

TEMPERATURE = 1.0

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Run folder of the demo.")

# The export may not need this package: here it can't even be imported.
_WITHOUT_PACKAGE = (
    "import runpy, sys; sys.modules['nvae_tf'] = None; "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Step(NamedTuple):
    """One command of the demo.

    Attributes:
      title: what it is for.
      arguments: what stands behind `python`.
      output: the file that tells that it has been done.
      without_package: whether it runs where `nvae_tf` can't be imported.
    """

    title: str
    arguments: list[str]
    output: pathlib.Path
    without_package: bool = False


def steps(workdir: pathlib.Path) -> list[Step]:
    """All commands in their order; the first makes what the others need."""
    run, total = f"--workdir={workdir}", preset("digits").train.steps
    drawing = [f"--temperature={TEMPERATURE}", "--seed=1", "--count=64"]
    samples, exported = workdir / "samples.png", workdir / "exported_samples.png"
    reconstructions, quality = workdir / "reconstructions.png", workdir / "quality.json"
    baseline, saved_model = workdir / "baseline.json", workdir / "saved_model"
    return [
        Step(
            "Train",
            ["-m", "train.main", "--config=configs/digits.py", run],
            workdir / "checkpoints" / f"step-{total}.index",
        ),
        Step(
            "Evaluate on the test images",
            ["-m", "train.evaluate", run, "--metrics=elbo,iw,latents", "--importance_samples=100"],
            workdir / "evaluation.json",
        ),
        Step("Draw samples", ["-m", "train.generate", run, f"--output={samples}", *drawing], samples),
        Step(
            "Reconstruct test images",
            ["-m", "train.generate", "reconstruct", run, f"--output={reconstructions}"],
            reconstructions,
        ),
        Step(
            "Fit a simple baseline",
            ["-m", "benchmarks.mixture_of_bernoullis", "--components=120", f"--json={baseline}"],
            baseline,
        ),
        Step(
            "Ask a classifier of real digits about the samples",
            ["-m", "benchmarks.digits_quality", run, f"--temperature={TEMPERATURE}", f"--json={quality}"],
            quality,
        ),
        Step("Write a page about the run", ["-m", "train.report", run], workdir / "report.html"),
        Step(
            "Export",
            ["-m", "export.export_saved_model", run, f"--output={saved_model}"],
            saved_model / "1" / "saved_model.pb",
        ),
        Step(
            "Draw with the export, in a process where nvae_tf can't be imported",
            [
                "export/run_saved_model.py",
                f"--saved_model={saved_model / '1'}",
                f"--output={exported}",
                *drawing,
            ],
            exported,
            without_package=True,
        ),
        Step(
            "Serve the export for a moment, and ask it for samples by gRPC and by REST",
            ["-m", "export.try_serving", f"--path={saved_model}", f"--output={workdir}", *drawing],
            workdir / "served_rest.png",
        ),
    ]


def main() -> None:
    """Runs what is not finished, and tells what came out."""
    workdir = pathlib.Path(WORKDIR.value)
    started = time.monotonic()
    plan = steps(workdir)
    trained = plan[0].output
    for number, step in enumerate(plan, 1):
        heading = f"[{number}/{len(plan)}] {step.title}"
        if step.output.exists() and step.output.stat().st_mtime >= trained.stat().st_mtime:
            print(f"{heading}: done before, {step.output}", flush=True)
            continue
        print(f"\n{heading}\n$ python {shlex.join(step.arguments)}", flush=True)
        _remove(step.output)
        _run(step)
    print(f"\n{summary(workdir)}\nAll this in {duration(time.monotonic() - started)}.", flush=True)


def summary(workdir: pathlib.Path) -> str:
    """What came out: the figures, and where the pictures are."""
    evaluation, baseline, quality = (
        json.loads((workdir / name).read_text()) for name in ("evaluation.json", "baseline.json", "quality.json")
    )
    names = ("samples.png", "exported_samples.png", "served_grpc.png", "served_rest.png", "reconstructions.png")
    own, *others = (np.asarray(Image.open(workdir / name), np.int32) for name in names[:4])
    same_size = all(other.shape == own.shape for other in others)
    difference = max(int(np.abs(own - other).max()) for other in others) if same_size else "another size"
    return "\n".join(
        [
            f"test images, NELBO                     {evaluation['nelbo_nats']:7.2f} nats",
            f"  importance-weighted, {evaluation['importance_samples']:4d} samples     "
            f"{evaluation['importance_weighted_nats']:7.2f} nats",
            f"  mixture of {baseline['components']:3d} Bernoullis (baseline) {baseline['test_nats']:7.2f} nats",
            f"classifier's confidence, real test digits  {quality['confidence_on_real']:.3f}",
            f"  samples at temperature {TEMPERATURE:<4}               {quality['confidence_on_samples']:.3f}",
            f"  samples of each digit 0-9: {quality['samples_per_class']}",
            f"export, alone and served, against model: largest difference of a pixel: {difference} of 255",
            "pictures: " + ", ".join(str(workdir / name) for name in names),
            f"page:     {workdir / 'report.html'}",
            f"export:   {workdir / 'saved_model' / '1'}",
        ]
    )


def _run(step: Step) -> None:
    prefix = ["-I", "-c", _WITHOUT_PACKAGE] if step.without_package else []
    process = subprocess.Popen([sys.executable, *prefix, *step.arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # Ctrl-C has reached the step too; it saves what it has.
        code = process.wait() or 130
    if code:
        print(f"The step ended with exit code {code}; the same command goes on from here.", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def _remove(output: pathlib.Path) -> None:
    """Removes what an earlier training has left; an export is its whole folder."""
    if output.name == "saved_model.pb":
        shutil.rmtree(output.parent, ignore_errors=True)
    elif output.suffix in (".png", ".json", ".html"):
        output.unlink(missing_ok=True)


def run() -> None:
    """The demo as a command."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
