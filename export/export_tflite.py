"""Exports one signature of a run's model, or of a SavedModel of nvae-export, as a .tflite file for devices.

    nvae-export-tflite --workdir=runs/digits --output=decode.tflite --signature=decode --quantize=float16
    nvae-export-tflite --saved_model=models/digits/1 --output=decode.tflite --signature=decode
    nvae-export-tflite --workdir=runs/digits --page=page

Signatures, all of TFLite's builtin operations, float32, one image at a time (the batch of 1 is the first axis):

    decode       latent                           -> image
    encode       image, noise                     -> latent
    sample       noise, temperature               -> image
    reconstruct  image, noise                     -> image
    compose      latent, keep, noise, temperature -> image, latent

Images are in [0, 1]. Noise is standard-normal, as long as a latent; for encode, zeros give the posterior's means.
Models with classes take a label too, int32, -1 for none. The file's metadata (nvae_tf.serving.tflite.read_metadata)
have the latents' layout. compose takes the groups with keep 1, int32, and draws the others, each at its temperature.
Before it appears the file is run with ai-edge-litert and compared with the model: OUTPUT.json has the measurements. A
quantized model one of whose test images has less than --smallest_psnr against the model's is refused, and so are sample
and compose in int8. export/decode_on_device.py draws images with it.

--page=FOLDER, in place of --output and --signature, writes the explorer for any static host: index.html, compose, and
LiteRT.js, which runs it in the browser and which npm gets from its registry.

Exit code: 0 done, 2 a mistake in the command or a model that differs; then nothing is written.
"""

import functools
import pathlib
from typing import Annotated

from nvae_tf import command_line, errors, files
from nvae_tf.config import CHECKPOINT_HELP, CHECKPOINTS, DATA_PATH_HELP, real_number
from nvae_tf.serving import outputs

_MODES = "; ".join(f"{mode}: {numbers}" for mode, numbers in outputs.MODES.items())


def main(
    output: Annotated[str | None, "The .tflite file; must not exist yet."] = None,
    signature: Annotated[str | None, "What the device computes.", *outputs.DEVICE_SIGNATURES] = None,
    page: Annotated[str | None, "In place of both: folder of a page for a static host, new or empty."] = None,
    workdir: Annotated[str | None, command_line.RUN_HELP] = None,
    saved_model: Annotated[str | None, "In place of --workdir: one version, as models/digits/1."] = None,
    quantize: Annotated[str, f"How numbers are stored: {_MODES}.", *outputs.MODES] = "none",
    checkpoint: Annotated[str, CHECKPOINT_HELP, *CHECKPOINTS] = CHECKPOINTS[0],
    smallest_psnr: Annotated[float, "Decibels that quantized images must reach.", 0.0] = outputs.SMALLEST_PSNR,
    data_path: Annotated[str | None, DATA_PATH_HELP] = None,
) -> None:
    """Exports."""
    if (workdir is None) == (saved_model is None):
        raise ValueError("give one of --workdir and --saved_model")
    if not (output and signature) if not page else output or signature or quantize != "none":
        raise ValueError("give --output and --signature, or --page alone (without --quantize)")
    if page:
        files.check_new_folder(pathlib.Path(page), f"--page={page}")
    else:
        outputs.check_new_tflite(pathlib.Path(output), signature, quantize)
    real_number("--smallest_psnr", smallest_psnr, "must be a number of decibels from 0", 0.0)
    if saved_model:
        outputs.check_digests(pathlib.Path(saved_model))
    else:
        folder = command_line.run_folder(workdir)
    errors.start_tensorflow_quietly()
    from nvae_tf.runs.loading import load_run
    from nvae_tf.serving.saved_model import load_export, source_of
    from nvae_tf.serving.server_files import explorer_facts
    from nvae_tf.serving.tflite import export_tflite, run_images, write_static_page

    if saved_model:
        config, model, folded, source = load_export(saved_model)
    else:
        trained = load_run(folder, checkpoint)
        config, model, folded, source = trained.config, trained.model, None, source_of(trained)
    what = "the page" if page else signature
    print(f"Exporting {what} of {saved_model or workdir}, step {source.get('step', 0):,}, and comparing it ...")
    if page:
        place = pathlib.Path(saved_model, "..") if saved_model else pathlib.Path(workdir)
        classes = explorer_facts(pathlib.Path(saved_model))["classes"] if saved_model else trained.class_names
        shown = config.data.display_channels if config else ()
        write_static_page(model, pathlib.Path(page), place.resolve().name, source, classes, shown, folded)
        print(f"Wrote {page}; to look at it here: python -m http.server -d {page} 8000, http://localhost:8000")
        return
    images = functools.partial(run_images, config, data_path)
    measured = export_tflite(model, pathlib.Path(output), signature, quantize, images, source, smallest_psnr, folded)
    print(
        "  size      {size_bytes:,} bytes\n"
        "  latency   {latency_ms:.2f} ms an image (median of {test_inputs}, one thread)\n"
        "  error     largest {largest_error:.2g}, {relative_largest_error:.1g} of the largest value\n"
        "  images    PSNR {psnr_db:.1f} dB, of the worst {worst_psnr_db:.1f} dB".format(**measured)
    )
    print(f"Exported to {output}; the measurements are in {outputs.report_file(pathlib.Path(output))}")


run = command_line.command(main)
