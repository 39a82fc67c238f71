"""Where exports are written, and the checks of them that need no TensorFlow; the SHA-256 of files travels with them."""

import json
import pathlib
import re

from nvae_tf import errors
from nvae_tf.files import atomic_write, check_is_no_pattern, check_new_file, check_writable, file_sha256

# The types in which a SavedModel's kernels are stored; everything is computed in float32.
WEIGHTS = ("float32", "bfloat16", "float16")
DEFAULT_SIGNATURE = "serving_default"  # the signature that servers run for a request that names none
PNG_SUFFIX = "_png"  # the ending of signatures whose images are the bytes of PNG files
# The most rows of a batch of TensorFlow Serving and of a request to nvae-serve; exports may take fewer.
BATCH_ROWS = 64
# The signatures of .tflite files; `nvae_tf.serving.device_signatures.DeviceSignatures` describes them.
DEVICE_SIGNATURES = ("decode", "encode", "sample", "reconstruct", "compose")
MODES = {
    "none": "float32 weights and arithmetic",
    "float16": "float16 weights, float32 arithmetic",
    "dynamic": "int8 weights; activations are made int8 where that is quicker, with ranges of the moment",
    "int8": "int8 weights and activations, with ranges from the run's images; inputs and outputs stay float32",
}
# The PSNR in decibels, against the model's images, that each test image of a quantized model must reach. A decoder
# with bad ranges still looked right at 29 dB; at 26 and 22 dB its grays were wrong.
SMALLEST_PSNR = 30.0
ASSETS, EXAMPLES = "assets.extra", "examples.npz"
DIGESTS = f"{ASSETS}/sha256.json"
LARGEST_VERSION = 2**63 - 1  # the largest number of a version that TensorFlow Serving takes


def check_version_is_free(output: pathlib.Path, version: int) -> None:
    """Raises ValueError if `output/version` can't be made; `output` may be missing, empty, or hold other versions."""
    if not 1 <= version <= LARGEST_VERSION:
        raise ValueError(f"version {version}: versions are whole numbers from 1 to {LARGEST_VERSION}")
    check_is_no_pattern(output)
    check_writable(output, str(output))
    # Hidden entries are left by file managers or killed exports; servers ignore them.
    entries = [entry for entry in output.glob("*") if not entry.name.startswith(".")]
    if foreign := sorted(entry.name for entry in entries if not (entry.name.isdecimal() and entry.is_dir())):
        raise ValueError(f"{output}: holds {foreign[0]!r}, so it has no versions; name a new or an empty folder")
    versions = {int(entry.name) for entry in entries}
    if version in versions:
        fix = f"which is not overwritten; the next free one is {max(versions) + 1}"
        raise ValueError(f"{output}: has a version {version} already, {fix}")


def check_is_export(folder: pathlib.Path) -> None:
    """Raises FileNotFoundError for a folder that is not one version of an export."""
    if not (folder / "saved_model.pb").is_file():
        versions = sorted(str(file.parent) for file in folder.glob("*/saved_model.pb"))
        there = f"; there is {', '.join(versions)}" if versions else ", as models/digits/1"
        raise FileNotFoundError(f"{folder}: no saved_model.pb in it; name one version{there}")


def newest_version(path: pathlib.Path) -> pathlib.Path:
    """Returns the newest version in a folder of versions; FileNotFoundError for any other folder."""
    versions = [folder for folder in path.glob("*/") if re.fullmatch("0|[1-9][0-9]*", folder.name)]
    if not versions:
        raise FileNotFoundError(f"{path}: no numbered versions in it; give the folder that nvae-export writes them to")
    return max(versions, key=lambda folder: int(folder.name))


def write_digests(folder: pathlib.Path) -> None:
    """Records the SHA-256 of every file of an export."""
    atomic_write(folder / DIGESTS, json.dumps(_digests(folder), indent=2) + "\n")


def check_digests(folder: pathlib.Path) -> None:
    """Raises what `check_is_export` does, and ValueError if a file is missing or has another SHA-256 than recorded."""
    from nvae_tf import schemas  # it imports NumPy, and the `--help` of three commands imports this module

    check_is_export(folder)
    with errors.wrap_read_errors(f"{folder / DIGESTS}: missing or damaged (", "); copy the export anew"):
        recorded = schemas.parsed((folder / DIGESTS).read_text(), {"*": schemas.Field("text", optional=True)})
    if names := sorted({name for name, _ in recorded.items() ^ _digests(folder).items()}):
        raise ValueError(f"{folder}: {', '.join(names[:5])} missing, changed or not in {DIGESTS}; copy the export anew")


def unchecked_reason(folder: pathlib.Path) -> str:
    """Returns why a version's files can't be checked, or ''; ValueError or FileNotFoundError for a damaged version."""
    check_is_export(folder)
    if (folder / DIGESTS).is_file():
        check_digests(folder)
        return ""
    missing = "sha256.json" if (folder / ASSETS).is_dir() else ASSETS
    return f"{folder}: {missing} is missing, so its files can't be checked: copy it anew if nvae-export has made it"


def _digests(folder: pathlib.Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / DIGESTS)
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def report_file(output: pathlib.Path) -> pathlib.Path:
    """Returns the file beside a .tflite file that has its measurements."""
    return output.with_name(f"{output.name}.json")


def check_new_tflite(output: pathlib.Path, signature: str, quantize: str) -> None:
    """Raises ValueError where a signature can't be quantized so, or its file or report can't be a new file."""
    if signature in ("sample", "compose") and quantize == "int8":
        reason = "temperatures above the int8 ranges would be clipped without a word; take --quantize=dynamic"
        raise ValueError(f"--signature={signature} --quantize=int8: {reason}")
    for file in (output, report_file(output)):
        check_new_file(file, f"--output={output}")
