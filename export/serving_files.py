"""Writes what TensorFlow Serving needs to serve all exports of a folder, in Docker or on Kubernetes.

    nvae-serving-files --models=models --output=serving
    nvae-serving-files --models=models --output=serving --labels=digits:stable=3,digits:canary=4

--models has models/NAME/VERSION/saved_model.pb, as `nvae-export --output=models/NAME` writes them; all must have the
SHA-256 that is recorded in them. Into the output folder come these files, in place of those that have the names:

    docker-compose.yml       starts the server: gRPC on port 8500, REST on 8501, both for this machine alone
    models.config            which versions of which models are loaded, and their labels; read again when it changes
    batching_parameters.txt  how requests are collected to batches, to begin with; only where all exports give each
                             row its own verdict, the output `valid`: otherwise one error fails the whole batch
    monitoring.config        turns on the metrics for Prometheus
    prometheus.yml           for `docker compose --profile monitoring up`
    health_check.sh          how Docker finds out whether the models answer
    explorer/                the explorer, a page that shows in a browser what the models have learned
    kubernetes.yaml          the same for Kubernetes: with probes, a memory limit, and annotations for Prometheus

Without --labels the newest version of each model is served, and a new export is served as soon as it is there. With
labels (clients ask for /v1/models/digits/labels/stable) the versions with a label are served and no others; auto gives
every model two: canary is the newest version, stable the newest but one.

Exit code: 0 done, 2 a mistake in the command or a damaged export; then nothing is written.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line


def main(
    models: Annotated[str, "Folder of exports, each at NAME/VERSION."],
    output: Annotated[str, "Folder of the files."],
    image: Annotated[str | None, "NAME:TAG, a release of TensorFlow Serving, if not 2.20.0."] = None,
    labels: Annotated[str, "MODEL:LABEL=VERSION,... or auto."] = "",
) -> None:
    """Writes the files."""
    from nvae_tf.serving.server_files import SERVING_IMAGE, write_server_files

    print(write_server_files(pathlib.Path(models), pathlib.Path(output), image or SERVING_IMAGE, labels))


run = command_line.command(main)
