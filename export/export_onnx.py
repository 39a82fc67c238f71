"""Exports the model of a run as ONNX files, for onnxruntime and all else that reads ONNX.

    nvae-export-onnx --workdir=runs/digits --output=digits_onnx

The files of the new folder are of opset 18 with standard operations alone, float32, for any number of rows:

    decode.onnx       latent             -> image
    encode.onnx       image, noise       -> latent
    reconstruct.onnx  image, noise       -> reconstruction
    sample.onnx       noise, temperature -> image
    score.onnx        image, noise       -> nats, kl_per_group; bits_per_dim, if the likelihood has masses

Images are in [0, 1]. Noise is standard-normal, as long as a latent; beside images, zeros give the posterior's means.
Models with classes take a label too, int32, -1 for none. The metadata of each file have the settings and the latents'
layout. The folder appears after a process that can import neither TensorFlow nor this package has run the files and
got the model's numbers, to 1e-5 of the largest and 1e-4 nats (above 50 nats 2e-6). examples/run_onnx.py runs them.

Exit code: 0 done, 2 a mistake in the command, an operation that ONNX lacks, or other numbers; then nothing is written.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line, errors, files
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS


def main(
    workdir: Annotated[str, command_line.RUN_HELP],
    output: Annotated[str, "Folder of the files, new or empty."],
    checkpoint: Annotated[str, CHECKPOINT_HELP, *CHECKPOINTS] = CHECKPOINTS[0],
) -> None:
    """Exports."""
    files.check_new_folder(pathlib.Path(output), f"--output={output}")
    folder = command_line.run_folder(workdir)
    errors.start_tensorflow_quietly()
    from nvae_tf.runs.loading import load_run
    from nvae_tf.serving.onnx_files import export_onnx
    from nvae_tf.serving.saved_model import source_of

    run = load_run(folder, checkpoint)
    print(f"Exporting {workdir}, step {run.step:,}, and checking it: up to some minutes ...", flush=True)
    export_onnx(run.model, pathlib.Path(output), source_of(run))
    print(f"Exported to {output}; the files give the model's numbers without TensorFlow and this package.")


run = command_line.command(main)
