"""Reads batches from a folder of pictures in a process of its own and says how much memory that took at most.

Called by benchmarks/data_throughput.py: `python -m benchmarks.folder_memory_worker FOLDER BATCHES`.
"""

import json
import sys
import time

from benchmarks.interleaved import peak_memory_bytes


def main() -> None:
    """Prints one line of JSON: seconds to list and check the files, images, and bytes after each stage."""
    folder, batches = sys.argv[1], int(sys.argv[2])
    from nvae_tf.errors import start_tensorflow_quietly

    start_tensorflow_quietly()
    from nvae_tf.config import DataSpec
    from nvae_tf.data.pipeline import iterate, training_batches
    from nvae_tf.data.sources import load_split
    from nvae_tf.data.spec import OWN_IMAGES, complete_spec

    spec = complete_spec(DataSpec(**vars(OWN_IMAGES) | {"path": folder}))
    imported = peak_memory_bytes()
    started = time.monotonic()
    source = load_split(spec, "train")
    seconds = time.monotonic() - started
    reading = iterate(training_batches(source, spec, 64, seed=0), source)
    for _ in range(batches):
        next(reading)
    figures = {"images": source.count, "seconds_to_check": seconds, "imported_bytes": imported}
    print(json.dumps(figures | {"peak_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main()
