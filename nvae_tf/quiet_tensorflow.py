"""Starting TensorFlow without its notes about its own build, for commands whose output people read."""

import os
import sys
import tempfile

# Said at every start on a machine without a GPU, by code that does not know TF_CPP_MIN_LOG_LEVEL yet.
_NOTES = (
    "before absl::InitializeLog()",
    "oneDNN custom operations are on",
    "Could not find cuda drivers",
    "optimized to use available CPU instructions",
    "To enable the following instructions",
)
_NO_GPU = "failed call to cuInit"
_NVIDIA_DRIVER = "/proc/driver/nvidia"


def start_tensorflow_quietly() -> None:
    """Imports TensorFlow and looks for devices; of what it says meanwhile on standard error, only news are
    let through.

    That no GPU answers is news where there is a driver for one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    notes = _NOTES if os.path.exists(_NVIDIA_DRIVER) else (*_NOTES, _NO_GPU)
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        standard_error = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not any(note in line for note in notes):
                    print(line, file=sys.stderr)
