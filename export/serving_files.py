"""Writes what TensorFlow Serving needs to serve all exports of a folder in Docker.

    python -m export.serving_files --models=models --output=serving
    python -m export.serving_files --models=models --output=serving --labels=digits:stable=3,digits:canary=4

--models has models/NAME/VERSION/saved_model.pb, as `export.export_saved_model --output=models/NAME` writes them. In the
output folder there are then

    docker-compose.yml       starts the server: gRPC on port 8500, REST on 8501, both for this machine alone
    models.config            which versions of which models are loaded, and their labels
    batching_parameters.txt  how requests are collected to batches, fitted to batches measured on this machine
    monitoring.config        turns on the figures for Prometheus
    prometheus.yml           for `docker compose --profile monitoring up`
    health_check.sh          how Docker finds out whether the models answer

Files of these names are replaced, others are left alone. A server that runs sees a new models.config within half a
minute; for the rest, `docker compose up --detach` restarts it.

Without --labels the newest version of each model is served, and a new export is served as soon as it is there. With
labels (clients ask for /v1/models/digits/labels/stable) the versions with a label are served and no others.
--labels=auto gives every model two: canary is the newest version, stable the newest but one. A request without a label
or a version gets the highest version that is loaded, so the canary.

Exit code: 0 done, 2 a mistake in the command or an export that can't be run; then nothing is written. With
NVAE_TF_TRACEBACK=1 in the environment a mistake is told with its traceback.
"""

import argparse
import datetime
import math
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

from nvae_tf.files import atomic_write
from nvae_tf.serving.command_mistakes import OneLineParser, check_flag_names, exit_on_mistake, flag_names
from nvae_tf.serving.server_files.batching_fit import batching_file, fit_batching, timing_table
from nvae_tf.serving.server_files.compose_file import SERVING_IMAGE, ComposeSettings, check_image, compose_file
from nvae_tf.serving.server_files.exported_models import ServedExports, find_exports, with_labels
from nvae_tf.serving.server_files.serving_configuration import HEALTH_CHECK, MONITORING, PROMETHEUS, models_config

_BATCHING = "batching_parameters.txt"


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, and writes the files."""
    with exit_on_mistake():
        flags = _read_flags(arguments)
        exports = with_labels(find_exports(flags.models), flags.labels)
        if flags.output.exists() and not flags.output.is_dir():
            raise ValueError(f"--output={flags.output}: a file; name a folder")
        cores = _cores()
        kept = not flags.measure and (flags.output / _BATCHING).is_file()
        settings = ComposeSettings(flags.image, flags.models, flags.output, exports, cores, flags.measure or kept)
        files = {
            "models.config": models_config(exports),
            "monitoring.config": MONITORING,
            "prometheus.yml": PROMETHEUS,
            "health_check.sh": HEALTH_CHECK,
            "docker-compose.yml": compose_file(settings),
        }
        if flags.measure:
            files[_BATCHING] = _measured_batching(flags.models, exports, cores, flags.longest_batch_seconds)
        _write(flags.output, files)
        if not flags.measure:
            print(f"{_BATCHING}: {'the one that is there is used' if kept else 'none, so requests are not batched'}.")
    print(f"To start the server: cd {flags.output} && docker compose up --detach --wait")


def run() -> None:
    """The command `nvae-serving-files`."""
    main(sys.argv[1:])


def _measured_batching(models: pathlib.Path, exports: list[ServedExports], cores: int, longest_seconds: float) -> str:
    """Measures every version that is served, which all share the parameters."""
    from nvae_tf.serving.server_files.batch_latency import MOST_RUNS, measure_batches

    timings = {}
    for name, version in [(model.name, version) for model in exports for version in model.served]:
        print(f"Measuring batches of {name}/{version} ...", flush=True)
        signature, batches = measure_batches(models / name / str(version), longest_seconds)
        timings[f"{name}/{version}, {signature}"] = batches
    print("\n".join([*timing_table(timings), ""]))
    parameters = fit_batching(timings, cores, longest_seconds)
    rows, most = parameters.max_execution_batch_size, parameters.max_batch_size
    print(f"The server will run batches of up to {rows} rows, and refuse a request of more than {most}.")
    measured = f"{datetime.date.today()}, {cores} cores ({platform.machine()}, {_devices()}), up to {MOST_RUNS} runs"
    return batching_file(timings, parameters, longest_seconds, measured)


def _write(output: pathlib.Path, files: dict[str, str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    replaced = [name for name in files if (output / name).exists()]
    for name, text in files.items():
        atomic_write(output / name, text)
    print(f"Wrote {', '.join(files)} to {output}.")
    if replaced:
        print(f"Replaced what was there of {', '.join(replaced)}.")


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> str:
    """What TensorFlow computed on."""
    import tensorflow as tf

    return "GPU" if tf.config.list_physical_devices("GPU") else "no GPU"


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def _read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(prog="export.serving_files", description=__doc__)
    parser.add_argument("--models", type=pathlib.Path, required=True, metavar="DIR", help="has NAME/VERSION of exports")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of the files")
    image_help = f"a release of TensorFlow Serving (default: {SERVING_IMAGE})"
    parser.add_argument("--image", default=SERVING_IMAGE, metavar="NAME:TAG", help=image_help)
    labels_help = "MODEL:LABEL=VERSION,... or auto (default: none)"
    parser.add_argument("--labels", default="", metavar="LABELS", help=labels_help)
    measure_help = f"fit {_BATCHING} (default); if not, one that is there is used, or else requests are not batched"
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True, help=measure_help)
    longest_help = "no batch of several rows shall take longer (default: 1)"
    parser.add_argument("--longest_batch_seconds", type=_seconds, default=1.0, metavar="S", help=longest_help)
    check_flag_names(arguments, flag_names(parser))
    flags = parser.parse_args(arguments)
    check_image(flags.image)
    return flags


if __name__ == "__main__":
    run()
