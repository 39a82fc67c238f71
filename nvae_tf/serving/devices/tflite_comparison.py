"""Runs a .tflite model as a device does and compares what it gives with the model."""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from nvae_tf.files import beside_package
from nvae_tf.serving.devices.device_inputs import Arrays, in_batches
from nvae_tf.serving.devices.device_signatures import DeviceSignatures

THREADS = 1
_RUN = beside_package("export") / "run_tflite.py"
# Equal pictures have no PSNR; what float32 rounds off is some 140 dB down.
_SMALLEST_SQUARE = 1e-15


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A .tflite model against the float32 model, on the same inputs.

    Attributes:
      size_bytes: of the file.
      latency_ms: median time of a picture in milliseconds, on one thread of this machine.
      test_inputs: how many pictures the numbers are of.
      largest_error: largest difference of an output, pictures in [0, 1] or latents.
      relative_largest_error: the same over the largest number of the model's output.
      mean_error: mean of the differences' sizes.
      relative_error: root mean square of the differences over that of the float32 model's outputs.
      psnr_db: of all pictures, 1 the peak; of `encode`, the pictures that the float32 model decodes from the latents.
      worst_psnr_db: of the picture that differs most.
    """

    size_bytes: int
    latency_ms: float
    test_inputs: int
    largest_error: float
    relative_largest_error: float
    mean_error: float
    relative_error: float
    psnr_db: float
    worst_psnr_db: float

    def text(self) -> str:
        """The numbers for people, a line each."""
        return (
            f"  size      {self.size_bytes:,} bytes\n"
            f"  latency   {self.latency_ms:.2f} ms a picture (median of {self.test_inputs}, {THREADS} thread)\n"
            f"  error     largest {self.largest_error:.2g}, mean {self.mean_error:.2g}, "
            f"relative {self.relative_error:.2g}\n"
            f"  pictures  PSNR {self.psnr_db:.1f} dB, that of the worst {self.worst_psnr_db:.1f} dB"
        )


def compare(content: bytes, signatures: DeviceSignatures, name: str, inputs: Arrays) -> Comparison:
    """Runs the signature called `name` of a .tflite model on inputs `[count, ...]` and compares.

    Args:
      content: the .tflite model.
      signatures: the float32 model's.
      name: of the signature.
      inputs: of the signature, by name.

    Raises:
      ValueError: the interpreter can't run it, or the model's or the file's numbers are not finite.
    """
    output = "latent" if name == "encode" else "image"
    expected = in_batches(lambda **rows: getattr(signatures, name)(**rows)[output], inputs)
    found, seconds = _device_outputs(content, name, output, inputs)
    if not np.isfinite(expected).all():
        raise ValueError(
            f"the model's {output} (signature {name}) is not finite: its weights have diverged; export an earlier "
            "checkpoint"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"the .tflite model's {output} (signature {name}) is not finite: try another --quantize")
    difference = found - expected
    squares = _squares_of_pictures(signatures, name, expected, found)
    return Comparison(
        size_bytes=len(content),
        latency_ms=1e3 * float(np.median(seconds)),
        test_inputs=len(found),
        largest_error=float(np.abs(difference).max()),
        relative_largest_error=float(np.abs(difference).max() / np.abs(expected).max()),
        mean_error=float(np.abs(difference).mean()),
        relative_error=float(np.sqrt(np.square(difference).mean() / np.square(expected).mean())),
        psnr_db=_psnr(squares.mean()),
        worst_psnr_db=_psnr(squares.max()),
    )


def _device_outputs(content: bytes, name: str, output: str, inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """An output `[count, ...]` and the seconds that each row took.

    Raises:
      ValueError: the interpreter can't run the model.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        model, given, made = (pathlib.Path(elsewhere, file) for file in ("model.tflite", "inputs.npz", "results.npz"))
        model.write_bytes(content)
        np.savez(given, **inputs)
        command = [sys.executable, "-I", str(_RUN), str(model), name, output, str(given), str(made), str(THREADS)]
        process = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, errors="replace")
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ValueError(
                f"TFLite's interpreter can't run the converted model (signature {name}; exit code "
                f"{process.returncode}: {reason}). Nothing was written. With --quantize=int8 that happens where an "
                "activation is 0 for all training images that ranges are taken from: take --quantize=dynamic"
            )
        with np.load(made) as results:
            return results["output"], results["seconds"]


def _squares_of_pictures(
    signatures: DeviceSignatures, name: str, expected: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """The mean square difference of each picture, `[count]`."""
    if name == "encode":
        expected, found = (
            in_batches(lambda latent: signatures.decode(latent)["image"], {"latent": latent})
            for latent in (expected, found)
        )
    return np.square(found - expected).mean(axis=(1, 2, 3))


def _psnr(square: float) -> float:
    """Peak signal-to-noise ratio in decibels, for a peak of 1."""
    return float(-10.0 * np.log10(max(square, _SMALLEST_SQUARE)))
