import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from nvae_tf.serving import server_files
from nvae_tf.serving.server_files import BatchTiming, fit_batching, largest_worthwhile

FILES = {"models.config", "monitoring.config", "prometheus.yml", "health_check.sh", "docker-compose.yml"}
FILES |= {"kubernetes.yaml"}
BATCHING = "batching_parameters.txt"
NEW_OPERATION = "DecodeJxl"
HEALTH_CHECK = pathlib.Path(server_files.__file__).with_name("templates") / "health_check.sh"
# Twice the rows in 1.5 times the time up to 8 rows, from there in twice the time.
TIMINGS = [BatchTiming(*pair) for pair in ((1, 0.1), (2, 0.15), (4, 0.225), (8, 0.3375), (16, 0.675), (32, 0.7))]


@pytest.fixture
def models(tmp_path):
    """Three versions of digits, one of faces, and things that are no exports."""
    for export in ("digits/2", "digits/3", "digits/10", "faces/1", "digits/.4.partial-x/4", "digits/old"):
        (tmp_path / "models" / export).mkdir(parents=True)
        (tmp_path / "models" / export / "saved_model.pb").touch()
    (tmp_path / "models" / "notes").mkdir()
    return tmp_path / "models"


@pytest.fixture
def write_files(done):
    """`write_files(models, *flags)` runs the command; gives the folder of the files and what it prints."""

    def run(models, *flags):
        output = models.parent / "serving"
        return output, done("export.serving_files", f"--models={models}", f"--output={output}", *flags)

    return run


def served_models(output):
    text = (output / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return {model.name: model for model in config.model_config_list.config}


def flags_of(output):
    serving = yaml.safe_load((output / "docker-compose.yml").read_text())["services"]["serving"]
    return dict(flag.removeprefix("--").split("=", 1) for flag in serving["command"])


def test_without_labels_the_newest_version_of_each_model_is_served(models, write_files):
    served = served_models(write_files(models, "--no-measure")[0])
    assert sorted(served) == ["digits", "faces"]
    for name, model in served.items():
        assert model.base_path == f"/models/{name}" and model.model_platform == "tensorflow"
        assert not model.version_labels and model.model_version_policy.latest.num_versions == 1


@pytest.mark.parametrize(
    ("labels", "digits", "faces"),
    [
        ("digits:stable=2,digits:canary=10", {"stable": 2, "canary": 10}, {}),
        ("auto", {"stable": 3, "canary": 10}, {"stable": 1, "canary": 1}),
    ],
)
def test_versions_with_labels_are_served_and_no_others(models, write_files, labels, digits, faces):
    output, _ = write_files(models, "--no-measure", f"--labels={labels}")
    served = served_models(output)
    assert dict(served["digits"].version_labels) == digits and dict(served["faces"].version_labels) == faces
    assert sorted(served["digits"].model_version_policy.specific.versions) == sorted(digits.values())
    assert served["faces"].model_version_policy.WhichOneof("policy_choice") == ("specific" if faces else "latest")
    assert flags_of(output)["allow_version_labels_for_unavailable_models"] == "true"


def test_an_export_is_measured_and_the_parameters_are_those_of_its_table(rows_folder, write_files):
    output, printed = write_files(rows_folder.parents[1], "--longest_batch_seconds=20")
    text = (output / BATCHING).read_text()
    table = re.findall(r"^# +(\d+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    rows = [int(row[0]) for row in table]
    assert "# rows/1, sample\n" in text and rows == [1, 2, 4, 8, 16, 32, 64][: len(rows)]
    parameters = {name: int(value) for name, value in re.findall(r"^(\w+) \{ value: (\d+) \}$", text, re.MULTILINE)}
    largest = parameters["max_execution_batch_size"]
    assert largest in rows[-2:] and f"up to {largest} rows" in printed
    # The client of this project sends up to 32 rows at once, whatever the server's batches are.
    assert "enable_large_batch_splitting { value: true }" in text and parameters["max_batch_size"] == 64
    alone = float(table[0][1])
    assert parameters["batch_timeout_micros"] == pytest.approx(1e3 * 0.2 * alone, abs=0.2 * 50 + 1)
    assert parameters["num_batch_threads"] == int(re.search(r"(\d+) cores", text)[1])
    flags = flags_of(output)
    assert flags["enable_batching"] == "true" and flags["batching_parameters_file"] == f"/serving/{BATCHING}"
    assert flags["tensorflow_intra_op_parallelism"] == str(parameters["num_batch_threads"])


def test_requests_are_not_batched_where_a_refused_row_would_fail_its_neighbors(texts_folder, tmp_path, write_files):
    shutil.copytree(texts_folder.parent, tmp_path / "models" / "texts")
    output, printed = write_files(tmp_path / "models")
    assert "Requests are not batched: texts/1 is an older export" in printed
    assert {file.name for file in output.iterdir()} == FILES and "enable_batching" not in flags_of(output)


def test_the_explorer_is_written_for_models_of_this_project(models, write_files):
    assets = models / "digits" / "10" / "assets.extra"
    assets.mkdir()
    model = {"image_height": 4, "image_width": 2, "image_channels": 1, "num_bits": 1, "num_classes": 2}
    (assets / "config.json").write_text(json.dumps({"model": model}))
    (assets / "latents.json").write_text(json.dumps({"shapes": [[1, 1, 3]]}))
    output, printed = write_files(models, "--no-measure")
    facts = json.loads((output / "explorer" / "explorer.json").read_text())["models"]
    assert facts == {"digits": {"image": [4, 2, 1], "num_bits": 1, "shapes": [[1, 1, 3]], "classes": ["0", "1"]}}
    assert (output / "explorer" / "explorer.html").is_file() and "explorer.html?server=http://localhost:8501" in printed
    assert flags_of(output)["rest_api_enable_cors_support"] == "${SERVING_CORS:-false}"


def kubernetes(output):
    """The objects of the manifest by their kinds."""
    return {found["kind"]: found for found in yaml.safe_load_all((output / "kubernetes.yaml").read_text())}


def test_the_manifest_of_kubernetes_has_what_the_compose_file_has(models, rows_folder, write_files):
    output, _ = write_files(models, "--no-measure", "--labels=digits:stable=3")
    found = kubernetes(output)
    for manifest in found.values():
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    pod = found["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    composed = yaml.safe_load((output / "docker-compose.yml").read_text())["services"]["serving"]
    flags = [flag.replace("${SERVING_CORS:-false}", "false") for flag in composed["command"]]
    assert container["args"] == flags and container["command"] == composed["entrypoint"]
    assert "--enable_grpc_healthcheck_service=true" in container["args"]
    assert container["image"] == composed["image"] == "tensorflow/serving:2.20.0"
    assert all(container[f"{probe}Probe"]["grpc"] == {"port": 8500} for probe in ("startup", "readiness", "liveness"))
    assert container["resources"]["limits"]["memory"] == "2048Mi"  # the exports' files are empty
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == "/monitoring/prometheus/metrics"
    assert annotations["prometheus.io/port"] == "8501"
    for name in ("models.config", "monitoring.config"):
        assert found["ConfigMap"]["data"][name].strip() == (output / name).read_text().strip()
    output, _ = write_files(rows_folder.parents[1])
    found = kubernetes(output)
    assert found["ConfigMap"]["data"][BATCHING].strip() == (output / BATCHING).read_text().strip()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert f"--batching_parameters_file=/serving/{BATCHING}" in container["args"]


def test_what_is_known_of_the_operations_is_said(rows_folder, tmp_path, write_files, refused):
    models = rows_folder.parents[1]
    assert "TensorFlow 2.20 has all operations of the exports" in write_files(models, "--no-measure")[1]
    printed = write_files(models, "--no-measure", "--image=tensorflow/serving:2.19.1")[1]
    assert "not known here whether TensorFlow 2.19.1 has all operations" in printed
    saved = saved_model_pb2.SavedModel.FromString((rows_folder / "saved_model.pb").read_bytes())
    for change, message in (
        (lambda graph: graph.node.add(op=NEW_OPERATION), f"operations that TensorFlow 2.20 has not: {NEW_OPERATION}"),
        (lambda graph: setattr(graph.versions, "min_consumer", 10**6), "TensorFlow 2.20 runs graphs of up to version"),
    ):
        other = tmp_path / "other" / "new" / "1"
        other.mkdir(parents=True, exist_ok=True)
        changed = saved_model_pb2.SavedModel.FromString(saved.SerializeToString())
        change(changed.meta_graphs[0].graph_def)
        (other / "saved_model.pb").write_bytes(changed.SerializeToString())
        flags = ["--models=" + str(tmp_path / "other"), f"--output={tmp_path / 'x'}", "--no-measure"]
        assert message in refused("export.serving_files", *flags)
        assert not (tmp_path / "x").exists()


def test_without_measuring_only_a_file_that_is_there_turns_batching_on(models, write_files):
    output, _ = write_files(models, "--no-measure")
    assert {file.name for file in output.iterdir()} == FILES and "enable_batching" not in flags_of(output)
    (output / BATCHING).write_text("max_batch_size { value: 4 }\n")
    (output / "models.config").write_text("old")
    (output / "notes.txt").write_text("mine")
    _, printed = write_files(models, "--no-measure")
    assert "Replaced what was there of " in printed and "digits" in served_models(output)
    assert {file.name for file in output.iterdir()} == FILES | {BATCHING, "notes.txt"}
    assert (output / BATCHING).read_text() == "max_batch_size { value: 4 }\n"
    assert flags_of(output)["enable_batching"] == "true"


def test_the_compose_file_mounts_what_the_flags_name(models, write_files):
    output, _ = write_files(models, "--no-measure", "--image=tensorflow/serving:2.19.1")
    composed = yaml.safe_load((output / "docker-compose.yml").read_text())
    serving = composed["services"]["serving"]
    assert serving["image"] == "tensorflow/serving:2.19.1"
    assert all(mount["read_only"] and mount["type"] == "bind" for mount in serving["volumes"])
    mounts = {mount["target"]: output / mount["source"] for mount in serving["volumes"]}
    assert mounts["/models"].resolve() == models.resolve()
    for flag in ("model_config_file", "monitoring_config_file"):
        file = pathlib.PurePosixPath(flags_of(output)[flag])
        assert (mounts[str(file.parent)] / file.name).is_file()
    # The server asks for no password.
    assert serving["ports"] == [f"${{SERVING_ADDRESS:-127.0.0.1}}:{port}:{port}" for port in (8500, 8501)]
    assert serving["healthcheck"]["test"] == ["CMD", "bash", "/serving/health_check.sh", "digits", "faces"]
    assert composed["services"]["prometheus"]["profiles"] == ["monitoring"]
    # The package lacks the message of this file: prometheus_config { enable, path }.
    text = (output / "monitoring.config").read_text()
    found = re.search(r'prometheus_config \{\s+enable: true\s+path: "(.*)"\s+\}', text)
    (job,) = yaml.safe_load((output / "prometheus.yml").read_text())["scrape_configs"]
    assert found[1] == job["metrics_path"] == "/monitoring/prometheus/metrics"
    assert job["static_configs"] == [{"targets": ["serving:8501"]}]
    # A dollar in a folder's name begins no variable of compose.
    odd = models.rename(models.parent / 'my "$models"')
    composed = yaml.safe_load((write_files(odd, "--no-measure")[0] / "docker-compose.yml").read_text())
    assert composed["services"]["serving"]["volumes"][0]["source"] == '../my "$$models"'


def test_a_mistake_is_reported_in_one_line_and_nothing_written(models, refused):
    for flags, message in (
        (["--models={models}/notes"], "no export in it"),
        (["--models={models}/none"], "no such folder"),
        (["--models={models}/digits"], "give the folder above it"),
        (["--labels=digits:stable=7"], "'digits' has no version 7; there is 2, 3, 10"),
        (["--labels=digts:stable=3"], "the model = 'digts': not one of the choices (digits, faces); did you mean 'dig"),
        (["--labels=digits:a=3,digits:a=2"], "has a label 'a' already"),
        (["--image=tensorflow/serving"], "name one release"),
        (["--output={models}/digits/2/saved_model.pb"], "a file; name a folder"),
        ([], "models/digits/10: can't be loaded"),  # the file is empty
    ):
        output = models.parent / "serving"
        places = [f"--models={models}", f"--output={output}"]
        assert message in refused("export.serving_files", *places, *(flag.format(models=models) for flag in flags))
        assert not output.exists()


def test_a_batch_is_doubled_while_that_pays_and_is_quick_enough():
    for timings, longest, rows in (
        (TIMINGS, 10.0, 8),  # a gain after a doubling that gave none is not looked for
        (TIMINGS, 0.3, 4),
        (TIMINGS, 0.01, 1),
        ([BatchTiming(1, 1.0), BatchTiming(2, 1.83)], 10.0, 1),  # 9 % more
        ([BatchTiming(1, 1.0), BatchTiming(2, 1.81)], 10.0, 2),  # 10.5 % more
    ):
        assert largest_worthwhile(timings, longest) == rows
    # Models that share the parameters get those that suit all.
    fast = [BatchTiming(1, 0.01), BatchTiming(2, 0.011), BatchTiming(4, 0.012)]
    # 4 rows; 20 % of 10 ms; 10 s of batches of 0.225 s; 3 cores.
    assert fit_batching({"slow": TIMINGS, "fast": fast}, 3, 10.0) == (64, 4, 2000, 44, 3)
    # The queue has place for two requests of 64 rows, and an end.
    assert fit_batching({"slow": [BatchTiming(1, 30.0)]}, 3, 1.0) == (64, 1, 6_000_000, 128, 3)
    assert fit_batching({"fast": [BatchTiming(1, 1e-4)]}, 3, 1.0).max_enqueued_batches == 1000


class States(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state = {"digits": "AVAILABLE", "late": "LOADING"}.get(self.path.removeprefix("/v1/models/"))
        body = f'{{\n "model_version_status": [\n  {{\n   "version": "3",\n   "state": "{state}"\n  }}\n ]\n}}\n'
        self.send_response(200 if state else 404)
        self.end_headers()
        self.wfile.write(body.encode() if state else b'{ "error": "Could not find any versions, \\"AVAILABLE\\"" }')

    def log_message(self, *_):
        pass


def test_the_health_check_asks_every_model_with_bash_alone():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), States) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        # Nothing but bash's own commands can be found.
        environment = {"PATH": "/nowhere", "SERVING_REST_PORT": str(server.server_address[1])}

        def health(*names):
            arguments = ["/bin/bash", str(HEALTH_CHECK), *names]
            return subprocess.run(arguments, env=environment, capture_output=True, timeout=20).returncode

        assert health("digits") == health("digits", "digits") == 0
        assert health("late") == health("digits", "late") == health("missing") == 1
        server.shutdown()
    assert health("digits") == 1
