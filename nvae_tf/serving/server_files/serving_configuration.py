"""The settings that TensorFlow Serving and Prometheus read from files, and the health check of the container."""

from collections.abc import Iterable

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from nvae_tf.serving.server_files.exported_models import ServedExports

GRPC_PORT, REST_PORT = 8500, 8501
# Where the container has the models.
MODELS = "/models"
METRICS = "/monitoring/prometheus/metrics"

# The package tensorflow-serving-api lacks this message: tensorflow_serving/config/monitoring_config.proto.
MONITORING = f"""# Prometheus finds the figures at http://HOST:{REST_PORT}{METRICS}
prometheus_config {{
  enable: true
  path: "{METRICS}"
}}
"""

PROMETHEUS = f"""# Used by the service `prometheus` of docker-compose.yml.
global:
  scrape_interval: 15s
scrape_configs:
  - job_name: tensorflow_serving
    metrics_path: {METRICS}
    # Prometheus 3 takes no answer whose Content-Type it does not know, unless it is told what it is.
    fallback_scrape_protocol: PrometheusText0.0.4
    static_configs:
      - targets: ["serving:{REST_PORT}"]
"""

# The official image has bash, its own entry point is a bash script, but neither curl nor Python.
HEALTH_CHECK = f"""#!/bin/bash
# Ends with 0 if every model that is named has a version that answers requests:  health_check.sh digits faces
# It needs bash alone. SERVING_REST_PORT is the port of the REST interface, {REST_PORT} if it is not set.
for name in "$@"; do
  exec 3<>"/dev/tcp/127.0.0.1/${{SERVING_REST_PORT:-{REST_PORT}}}" || exit 1
  printf 'GET /v1/models/%s HTTP/1.0\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' "$name" >&3
  # Everything up to the end of the answer; what has come after 5 s if the connection is kept open.
  IFS= read -r -d '' -t 5 -u 3 answer
  exec 3<&- 3>&-
  if [[ $answer != HTTP/1.?" 200 "* || $answer != *'"AVAILABLE"'* ]]; then
    echo "$name: ${{answer:-no answer}}"
    exit 1
  fi
done
"""


def models_config(exports: Iterable[ServedExports]) -> str:
    """The text of a ModelServerConfig, for --model_config_file.

    A model with labels is served in those versions alone, so a new export is not loaded before it gets one: an
    automatic policy could unload the version of a label. A model without labels is served in its newest version.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for exported in exports:
        model = config.model_config_list.config.add(
            name=exported.name, base_path=f"{MODELS}/{exported.name}", model_platform="tensorflow"
        )
        if exported.labels:
            model.model_version_policy.specific.versions.extend(exported.served)
            model.version_labels.update(exported.labels)
        else:
            model.model_version_policy.latest.num_versions = 1
    return "# A ModelServerConfig; the server reads it again when it has changed.\n" + text_format.MessageToString(
        config
    )
