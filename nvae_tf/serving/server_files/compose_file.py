"""The docker-compose.yml that starts TensorFlow Serving, and on request Prometheus beside it."""

import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from nvae_tf.serving.server_files.exported_models import ServedExports
from nvae_tf.serving.server_files.serving_configuration import GRPC_PORT, MODELS, REST_PORT

# The release whose TensorFlow, 2.21, is the one that writes the exports.
SERVING_IMAGE = "tensorflow/serving:2.21.0"
# A release with long-term support.
PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
# Where the container has the folder of these files.
_SETTINGS = "/serving"
_CONFIG_POLL_SECONDS, _MODELS_POLL_SECONDS = 30, 10
# The most that the protocol can say: a batch of pictures is larger than gRPC's usual 4 MB.
_LARGEST_MESSAGE = 2**31 - 1


class ComposeSettings(NamedTuple):
    """What a docker-compose.yml depends on."""

    image: str
    models: pathlib.Path
    output: pathlib.Path
    exports: list[ServedExports]
    cores: int
    batching: bool


def check_image(image: str) -> None:
    """Checks that the name of an image says which release it is.

    Raises:
      ValueError: it has no tag and no digest, or a tag that moves.
    """
    match = re.fullmatch(r"[\w./-]+(?::\d+/[\w./-]+)?(?::(?P<tag>[\w.-]+))?(?P<digest>@sha256:[0-9a-f]{64})?", image)
    tag, digest = (match["tag"] or "", match["digest"]) if match else ("", None)
    if not digest and (not tag or tag.split("-")[0] in ("latest", "nightly")):
        raise ValueError(f"--image={image}: name one release by its tag or digest, as {SERVING_IMAGE}")


def compose_file(settings: ComposeSettings) -> str:
    """The text of docker-compose.yml in the folder `settings.output`."""
    names = [model.name for model in settings.exports]
    image = settings.image.partition("@")[0]
    return f"""\
# TensorFlow Serving for {", ".join(names)}. In this folder:  docker compose up --detach --wait
# With Prometheus at http://localhost:9090:                   docker compose --profile monitoring up --detach --wait
services:
  serving:
    # A tag can be moved to another image, a digest can't. To pin it:
    #   docker pull {image}
    #   docker inspect --format '{{{{index .RepoDigests 0}}}}' {image}
    # and write what that prints, NAME@sha256:..., here (or give it as --image=).
    image: {settings.image}
    # There is no official image for other processors.
    platform: linux/amd64
    # The image's own entry point adds --model_name and passes no signals on: `docker compose stop` would take 10 s.
    init: true
    entrypoint: ["tensorflow_model_server"]
    command:
{_lines(_flags(settings), 6)}
    # The server asks nobody for a password, so that by default this machine alone can reach it.
    ports:
      - "${{SERVING_ADDRESS:-127.0.0.1}}:{GRPC_PORT}:{GRPC_PORT}"
      - "${{SERVING_ADDRESS:-127.0.0.1}}:{REST_PORT}:{REST_PORT}"
    # Folders, not files: a file that is replaced would stay the old one in the container.
    volumes:
{_bind(_relative(settings.models, settings.output), MODELS)}
{_bind(".", _SETTINGS)}
    healthcheck:
      test: {json.dumps(["CMD", "bash", f"{_SETTINGS}/health_check.sh", *names])}
      interval: 15s
      timeout: 10s
      retries: 3
      # While models are loaded a failure does not count.
      start_period: 180s
    restart: unless-stopped
    security_opt: ["no-new-privileges:true"]
    deploy:
      resources:
        limits:
          cpus: "{settings.cores}"
          # While a version replaces another both are in memory. Look at `docker stats` under load, then set a limit:
          # memory: 4g

  prometheus:
    profiles: [monitoring]
    image: {PROMETHEUS_IMAGE}
    command: ["--config.file={_SETTINGS}/prometheus.yml", "--storage.tsdb.path=/prometheus"]
    ports:
      - "${{SERVING_ADDRESS:-127.0.0.1}}:9090:9090"
    volumes:
{_bind(".", _SETTINGS)}
      - prometheus_data:/prometheus
    depends_on: [serving]
    restart: unless-stopped

volumes:
  prometheus_data:
"""


def _flags(settings: ComposeSettings) -> Iterable[str]:
    yield f"--port={GRPC_PORT}"
    yield f"--rest_api_port={REST_PORT}"
    yield f"--model_config_file={_SETTINGS}/models.config"
    yield f"--model_config_file_poll_wait_seconds={_CONFIG_POLL_SECONDS}"
    yield f"--file_system_poll_wait_seconds={_MODELS_POLL_SECONDS}"
    yield f"--monitoring_config_file={_SETTINGS}/monitoring.config"
    if settings.batching:
        yield "--enable_batching=true"
        yield f"--batching_parameters_file={_SETTINGS}/batching_parameters.txt"
    if any(model.labels for model in settings.exports):
        # When the server starts no version is loaded yet, and without this it refuses every label.
        yield "--allow_version_labels_for_unavailable_models=true"
    # TensorFlow counts the cores of the machine, not those that the container may use.
    yield f"--tensorflow_intra_op_parallelism={settings.cores}"
    yield f"--tensorflow_inter_op_parallelism={settings.cores}"
    yield f"--grpc_channel_arguments=grpc.max_receive_message_length={_LARGEST_MESSAGE}"


def _lines(values: Iterable[str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}- {value}" for value in values)


def _bind(source: str, target: str) -> str:
    """A read-only mount; JSON's strings are YAML's, and `$` would begin a variable."""
    quoted = json.dumps(source.replace("$", "$$"), ensure_ascii=False)
    return f"      - {{type: bind, source: {quoted}, target: {target}, read_only: true}}"


def _relative(models: pathlib.Path, output: pathlib.Path) -> str:
    """The folder of models as seen from the compose file, so that both can move together."""
    path = pathlib.PurePath(os.path.relpath(models.resolve(), output.resolve())).as_posix()
    return path if path.startswith(".") else f"./{path}"
