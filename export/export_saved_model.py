"""Exports the model of a run as a SavedModel, which runs without this package.

    nvae-export --workdir=runs/digits --output=models/digits
    nvae-export --workdir=runs/digits --output=models/digits --version=2 --checkpoint=best

The export is OUTPUT/VERSION, the place where TensorFlow Serving looks for it. It appears there after a process that
can't import this package has run it and got the model's numbers: one to some minutes. Its signatures are sample,
encode, decode, decode_upper_groups, reconstruct, score, compose and outlier_score, each also as NAME_png with PNG files
for REST. assets.extra/ has the settings, signatures.json, the layout of latents, the step and the scores.
--weights=bfloat16 or float16 stores the kernels in half the bytes; everything is still computed in float32.

Exit code: 0 done, 2 a mistake or an export that differs; nothing is written then.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line, config, errors
from nvae_tf.serving.outputs import WEIGHTS, check_version_is_free

_ROWS_HELP = "The most rows of a request; if not given, the number that takes 2 GiB, at least 64."


def main(
    workdir: Annotated[str, command_line.RUN_HELP],
    output: Annotated[str, "Folder of all versions."],
    version: Annotated[int, "Number of this version."] = 1,
    weights: Annotated[str, "How kernels are stored.", *WEIGHTS] = WEIGHTS[0],
    most_rows: Annotated[int | None, _ROWS_HELP, 3] = None,
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
) -> None:
    """Exports."""
    check_version_is_free(pathlib.Path(output), version)
    folder = command_line.run_folder(workdir)
    errors.start_tensorflow_quietly()
    from nvae_tf.runs.loading import load_run
    from nvae_tf.serving.saved_model import export_saved_model, origin_of

    run = load_run(folder, checkpoint)
    print(f"Exporting {workdir}, step {run.step:,}, and checking it: one to some minutes ...", flush=True)
    difference = export_saved_model(run.model, output, version, weights, origin_of(run, folder), most_rows)
    numbers = "the model's numbers"
    if weights != WEIGHTS[0]:
        numbers = f"the numbers of {weights} weights, {difference:.2g} of the largest off at most,"
    print(f"Exported to {pathlib.Path(output, str(version))}; it gives {numbers} without this package.")


run = command_line.command(main)
