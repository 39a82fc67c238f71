"""The files for TensorFlow Serving in Docker: what the server reads in them, and what the command says to mistakes."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = {"models.config", "monitoring.config", "prometheus.yml", "health_check.sh", "docker-compose.yml"}
BATCHING = "batching_parameters.txt"
BOOL_VALUE = ".google.protobuf.BoolValue"


@pytest.fixture
def models(tmp_path):
    """Three versions of digits, one of faces, and things that are no exports."""
    for export in ("digits/2", "digits/3", "digits/10", "faces/1", "digits/.4.partial-x/4", "digits/old"):
        (tmp_path / "models" / export).mkdir(parents=True)
        (tmp_path / "models" / export / "saved_model.pb").touch()
    (tmp_path / "models" / "notes").mkdir()
    return tmp_path / "models"


@pytest.fixture
def write_files(script):
    """`write_files(models, *flags)` runs the command; gives the folder of the files and what it prints."""

    def run(models, *flags):
        output = models.parent / "serving"
        code, printed, errors = script("serving_files", f"--models={models}", f"--output={output}", *flags)
        assert code == 0, errors
        return output, printed

    return run


def served_models(output):
    text = (output / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return {model.name: model for model in config.model_config_list.config}


def flags_of(output):
    serving = yaml.safe_load((output / "docker-compose.yml").read_text())["services"]["serving"]
    return dict(flag.removeprefix("--").split("=", 1) for flag in serving["command"])


def parse(text, name, fields, others=()):
    """Parses the text of a message that the package lacks, by its fields: name -> some number, type, repeated."""
    file = descriptor_pb2.FileDescriptorProto(name="settings.proto", package="settings", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    for message, its_fields in [(name, fields), *others]:
        described = file.message_type.add(name=message)
        for field, (number, kind, repeated) in its_fields.items():
            added = described.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type, added.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, kind
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return text_format.Parse(text, message_factory.GetMessageClass(pool.FindMessageTypeByName(f"settings.{name}"))())


def batching_of(text):
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    numbers += ("max_execution_batch_size",)
    fields = {name: (number, ".google.protobuf.Int64Value", False) for number, name in enumerate(numbers, 1)}
    return parse(text, "BatchingParameters", fields | {"enable_large_batch_splitting": (9, BOOL_VALUE, False)})


def test_without_labels_the_newest_version_of_each_model_is_served(models, write_files):
    served = served_models(write_files(models, "--no-measure")[0])
    assert {name: model.base_path for name, model in served.items()} == {
        "digits": "/models/digits",
        "faces": "/models/faces",
    }
    for model in served.values():
        assert model.model_platform == "tensorflow" and not model.version_labels
        assert model.model_version_policy.latest.num_versions == 1


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


def test_an_export_is_measured_and_the_parameters_are_those_of_its_table(folder, write_files):
    output, printed = write_files(folder.parents[1], "--longest_batch_seconds=20")
    text = (output / BATCHING).read_text()
    table = re.findall(r"^# +(\d+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    rows = [int(row[0]) for row in table]
    assert "# all/3, sample\n" in text and rows == [1, 2, 4, 8, 16, 32, 64][: len(rows)]
    parameters = batching_of(text)
    largest = parameters.max_execution_batch_size.value
    assert largest in rows[-2:] and f"up to {largest} rows" in printed
    # The client of this project sends up to 32 rows at once, whatever the server's batches are.
    assert parameters.enable_large_batch_splitting.value and parameters.max_batch_size.value == 64
    alone = float(table[0][1])
    assert parameters.batch_timeout_micros.value == pytest.approx(1e3 * 0.2 * alone, abs=0.2 * 50 + 1)
    assert parameters.num_batch_threads.value == int(re.search(r"(\d+) cores", text)[1])
    flags = flags_of(output)
    assert flags["enable_batching"] == "true" and flags["batching_parameters_file"] == f"/serving/{BATCHING}"
    assert flags["tensorflow_intra_op_parallelism"] == str(parameters.num_batch_threads.value)


def test_without_measuring_only_a_file_that_is_there_turns_batching_on(models, write_files):
    output, _ = write_files(models, "--no-measure")
    assert {file.name for file in output.iterdir()} == FILES and "enable_batching" not in flags_of(output)
    (output / BATCHING).write_text("max_batch_size { value: 4 }\n")
    write_files(models, "--no-measure")
    assert (output / BATCHING).read_text() == "max_batch_size { value: 4 }\n"
    assert flags_of(output)["enable_batching"] == "true"


def test_files_of_the_same_name_are_replaced_and_told_and_others_stay(models, write_files):
    output = models.parent / "serving"
    output.mkdir()
    (output / "models.config").write_text("old")
    (output / "notes.txt").write_text("mine")
    _, printed = write_files(models, "--no-measure")
    assert "Replaced what was there of models.config.\n" in printed
    assert "digits" in served_models(output) and (output / "notes.txt").read_text() == "mine"
    assert {file.name for file in output.iterdir()} == FILES | {"notes.txt"}


def test_monitoring_is_where_prometheus_looks(models, write_files):
    output, _ = write_files(models, "--no-measure")
    bool_type, string = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL, descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    inner = ("PrometheusConfig", {"enable": (1, bool_type, False), "path": (2, string, False)})
    fields = {"prometheus_config": (1, ".settings.PrometheusConfig", False)}
    config = parse((output / "monitoring.config").read_text(), "MonitoringConfig", fields, [inner]).prometheus_config
    (job,) = yaml.safe_load((output / "prometheus.yml").read_text())["scrape_configs"]
    assert config.enable and config.path == job["metrics_path"] == "/monitoring/prometheus/metrics"
    assert job["static_configs"] == [{"targets": ["serving:8501"]}]


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


def test_a_folder_with_a_dollar_is_no_variable_of_compose(models, write_files):
    odd = models.rename(models.parent / 'my "$models"')
    composed = yaml.safe_load((write_files(odd, "--no-measure")[0] / "docker-compose.yml").read_text())
    assert composed["services"]["serving"]["volumes"][0]["source"] == '../my "$$models"'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models={models}/notes"], "no export in it"),
        (["--models={models}/none"], "no such folder"),
        (["--models={models}/digits"], "give the folder above it"),
        (["--labels=digits:stable=7"], "'digits' has no version 7; there is 2, 3, 10"),
        (["--labels=digts:stable=3"], "no model 'digts'; did you mean 'digits'?"),
        (["--labels=digits=3"], "no MODEL:LABEL=VERSION"),
        (["--labels=digits:a=3,digits:a=2"], "has a label 'a' already"),
        (["--image=tensorflow/serving"], "name one release"),
        (["--image=localhost:5000/serving:latest-gpu"], "name one release"),
        (["--output={models}/digits/2/saved_model.pb"], "a file; name a folder"),
        (["--label=auto"], "'label'. Did you mean: labels"),
        ([], "models/digits/10: its batches can't be measured"),  # the file is empty
    ],
)
def test_a_mistake_is_reported_in_one_line_and_nothing_written(models, refused, flags, message):
    output = models.parent / "serving"
    places = [f"--models={models}", f"--output={output}"]
    assert message in refused("serving_files", *places, *(flag.format(models=models) for flag in flags))
    assert not output.exists()


def test_a_name_that_is_no_address_is_reported(models, refused):
    (models / "faces").rename(models / "my faces")
    assert "my faces: rename it" in refused("serving_files", f"--models={models}", "--output=x")


def test_help_does_not_wait_for_tensorflow():
    program = (
        "import atexit, runpy, sys; sys.argv.append('--help')\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "runpy.run_module('export.serving_files', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n") and "--labels" in process.stdout and "canary" in process.stdout
