import base64
import io
import json
import pathlib
import re
import shutil
import subprocess

import kubernetes_validate
import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from nvae_tf.serving import server_files
from nvae_tf.serving.outputs import write_digests
from nvae_tf.serving.server_files import explorer_facts
from tests.serving.model_servers import web_server

BATCHING = "batching_parameters.txt"
FILES = {"models.config", "monitoring.config", "prometheus.yml", "health_check.sh", "docker-compose.yml"}
FILES |= {"kubernetes.yaml", BATCHING}
HEALTH_CHECK = pathlib.Path(server_files.__file__).with_name("templates") / "health_check.sh"
EXPORT = saved_model_pb2.SavedModel(meta_graphs=[{}]).SerializeToString()


@pytest.fixture
def models(tmp_path):
    """Three versions of digits, one of faces, and things that are no exports."""
    for export in ("digits/2", "digits/3", "digits/10", "faces/1", "digits/.4.partial-x/4", "digits/old"):
        (tmp_path / "models" / export).mkdir(parents=True)
        (tmp_path / "models" / export / "saved_model.pb").write_bytes(EXPORT)
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


def test_versions_with_labels_are_served_and_no_others_or_the_newest(models, write_files):
    for labels, digits, faces in (
        ("", {}, {}),
        ("digits:stable=2,digits:canary=10", {"stable": 2, "canary": 10}, {}),
        ("auto", {"stable": 3, "canary": 10}, {"stable": 1, "canary": 1}),
    ):
        output, _ = write_files(models, f"--labels={labels}")
        served = served_models(output)
        assert sorted(served) == ["digits", "faces"]
        for name, versions in (("digits", digits), ("faces", faces)):
            model, policy = served[name], served[name].model_version_policy
            assert model.base_path == f"/models/{name}" and dict(model.version_labels) == versions
            assert list(policy.specific.versions) == sorted(set(versions.values()))
            assert versions or policy.latest.num_versions == 1
        # Labels may come while the server runs.
        assert flags_of(output)["allow_version_labels_for_unavailable_models"] == "true"


def test_requests_are_not_batched_where_a_refused_row_would_fail_its_neighbors(texts_folder, tmp_path, write_files):
    shutil.copytree(texts_folder.parent, tmp_path / "models" / "texts")
    output, printed = write_files(tmp_path / "models")
    assert re.search("Requests are not batched: .*/texts/1: an older export", printed)
    assert {file.name for file in output.iterdir()} == FILES - {BATCHING} and "enable_batching" not in flags_of(output)


def test_the_explorer_is_written_for_models_of_this_project(models, write_files):
    assets = version_of_this_project(models / "digits" / "10")
    classes = ["</script><script>", "eel"]
    (assets / "examples.npz").write_bytes(npz(images=np.ones([1, 4, 2, 1], np.int64), classes=classes))
    output, printed = write_files(models)
    text = (output / "explorer" / "explorer.json").read_text()
    facts = json.loads(text)["models"]["digits"]
    assert base64.b64decode(facts.pop("examples")) == b"\x01" * 8 and "<" not in text
    assert facts == {"image": [4, 2, 1], "num_bits": 1, "shapes": [[1, 1, 3]], "classes": classes}
    assert (output / "explorer" / "explorer.html").is_file() and "explorer.html?server=http://localhost:8501" in printed
    assert flags_of(output)["rest_api_enable_cors_support"] == "${SERVING_CORS:-false}"
    (assets / "examples.npz").unlink()
    for channels, chosen, shown in ((8, [], [0, 1, 2]), (8, [4, 0, 2], [4, 0, 2]), (3, [1], [1, 1, 1])):
        settings = json.loads(config(image_channels=channels, num_bits=12)) | {"data": {"display_channels": chosen}}
        (assets / "config.json").write_text(json.dumps(settings))
        facts = explorer_facts(assets.parent)
        assert (facts["image"], facts["num_bits"], facts["shown"]) == ([4, 2, channels], 8, shown)


def version_of_this_project(folder):
    """Makes a folder one whose facts the explorer can show; gives its assets."""
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "config.json").write_bytes(config())
    (folder / "assets.extra" / "latents.json").write_text(json.dumps({"shapes": [[1, 1, 3]]}))
    return folder / "assets.extra"


def config(**settings):
    model = {"image_height": 4, "image_width": 2, "image_channels": 1, "num_bits": 1, "num_classes": 2}
    return json.dumps({"model": model | settings}).encode()


def npz(**arrays):
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("source.json", b'{"most_rows": 0}', "source.json: damaged (`most_rows` has numbers that are not all from"),
        ("source.json", b'{"bytes_of_row": 1e400}', "source.json: damaged (`bytes_of_row` is inf; it must be a whole"),
        ("config.json", b'{"model": {"image_height": 4}}', "config.json: `model`: it has image_height, and no entry"),
        ("config.json", config(num_classes=10**9), "`num_classes` has numbers that are not all from 0 to 100000"),
        ("config.json", config(image_height=-4), "`image_height` has numbers that are not all from 1 to"),
        ("latents.json", b'{"shapes": [[1, 1, "<script>"]]}', "(latents.json: `shapes` is [[1, 1, '<script>']]"),
        ("examples.npz", npz(images=np.zeros([2, 4, 4, 1], np.uint8)), "damaged (`images` is of shape"),
    ],
)
def test_a_wrong_file_of_the_assets_is_named_in_one_line(models, refused, name, content, message):
    assets = version_of_this_project(models / "digits" / "10")
    (assets / name).write_bytes(content)
    commands = [("serving_files", f"--models={models}", f"--output={models.parent / 'serving'}")]
    commands += [("serve", f"--path={models / 'digits'}", "--explore")] if name != "source.json" else []
    for command, *flags in commands:
        errors = refused(f"export.{command}", *flags)
        assert message in errors and "digits/10/assets.extra" in errors and "copy the export anew" in errors
        assert not (models.parent / "serving").exists()


def test_the_manifest_of_kubernetes_has_what_the_compose_file_has(models, write_files):
    output, _ = write_files(models, "--labels=digits:stable=3")
    manifests = {part["kind"]: part for part in yaml.safe_load_all((output / "kubernetes.yaml").read_text())}
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    pod = manifests["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    composed = yaml.safe_load((output / "docker-compose.yml").read_text())["services"]["serving"]
    flags = [flag.replace("${SERVING_CORS:-false}", "false") for flag in composed["command"]]
    assert container["args"] == flags and container["command"] == composed["entrypoint"]
    assert container["image"] == composed["image"] == "tensorflow/serving:2.20.0"
    assert all(container[f"{probe}Probe"]["grpc"] == {"port": 8500} for probe in ("startup", "liveness"))
    assert ["CMD", *container["readinessProbe"]["exec"]["command"]] == composed["healthcheck"]["test"]
    cores = int(flags_of(output)["tensorflow_intra_op_parallelism"])
    # 64 rows of 1 MiB a core; the exports' files have some bytes.
    assert container["resources"]["limits"]["memory"] == f"{1024 + 64 * cores + 1}Mi"
    for name in ("models.config", "monitoring.config", "health_check.sh", BATCHING):
        assert manifests["ConfigMap"]["data"][name].strip() == (output / name).read_text().strip()
    assert f"--batching_parameters_file=/serving/{BATCHING}" in container["args"]
    assert f"num_batch_threads {{ value: {cores} }}" in (output / BATCHING).read_text()


def test_what_is_known_of_the_operations_is_said(folder, tmp_path, write_files, refused):
    models = shutil.copytree(folder, tmp_path / "models" / "tiny" / "3").parents[1]
    assert "TensorFlow 2.20 has all operations of the exports" in write_files(models)[1]
    printed = write_files(models, "--image=tensorflow/serving:2.19.1")[1]
    assert "not known here whether TensorFlow 2.19.1 has all operations" in printed
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].graph_def.node.add(op="DecodeJxl")
    (tmp_path / "other" / "new" / "1").mkdir(parents=True)
    (tmp_path / "other" / "new" / "1" / "saved_model.pb").write_bytes(saved.SerializeToString())
    flags = ["--models=" + str(tmp_path / "other"), f"--output={tmp_path / 'x'}"]
    assert "needs DecodeJxl, which TensorFlow 2.20 has not" in refused("export.serving_files", *flags)
    assert not (tmp_path / "x").exists()


def test_the_compose_file_mounts_what_the_flags_name(models, write_files):
    (models.parent / "serving").mkdir()
    for name in ("models.config", "notes.txt"):
        (models.parent / "serving" / name).write_text("old")
    output, _ = write_files(models, "--image=tensorflow/serving:2.19.1")
    assert {file.name for file in output.iterdir()} == FILES | {"notes.txt"} and "digits" in served_models(output)
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
    # The package lacks the message of this file: prometheus_config { enable, path }.
    text = (output / "monitoring.config").read_text()
    path = re.search(r'prometheus_config \{\s+enable: true\s+path: "(.*)"\s+\}', text)[1]
    (job,) = yaml.safe_load((output / "prometheus.yml").read_text())["scrape_configs"]
    assert path == job["metrics_path"] and job["static_configs"] == [{"targets": ["serving:8501"]}]
    # A dollar in a folder's name begins no variable of compose.
    odd = models.rename(models.parent / 'my "$models"')
    composed = yaml.safe_load((write_files(odd)[0] / "docker-compose.yml").read_text())
    assert composed["services"]["serving"]["volumes"][0]["source"] == '../my "$$models"'


def test_a_mistake_is_reported_in_one_line_and_nothing_written(models, refused):
    for flags, message in (
        (["--models={models}/notes"], "no export in it"),
        (["--models={models}/digits"], "give the folder above it"),
        (["--labels=digits:stable=7"], "'digits:stable=7' must be MODEL:LABEL=VERSION, a new label and a version"),
        (["--labels=digits:stable=3,digits:stable=2"], "(digits has 2, 3, 10; faces has 1)"),
        (["--labels=digts:stable=3"], "the model = 'digts': not one of the choices (digits, faces); did you mean 'dig"),
        (["--image=tensorflow/serving"], "name one release"),
        (["--image=:2.20.0"], "name one release"),
        (["--image=a:b:2.20"], "name one release"),
        ([], "models/faces/1: a damaged export ("),
    ):
        if not flags:
            (models / "faces" / "1" / "saved_model.pb").write_bytes(b"")
        output = models.parent / "serving"
        places = [f"--models={models}", f"--output={output}"]
        assert message in refused("export.serving_files", *places, *(flag.format(models=models) for flag in flags))
        assert not output.exists()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("digits/10/variables", pathlib.Path.unlink, "digits/10: variables missing, changed"),
        ("digits/10/saved_model.pb", pathlib.Path.unlink, "digits/10: TensorFlow Serving would take it for a"),
        ("faces/02", pathlib.Path.touch, "faces/02: TensorFlow Serving would take it for a version"),
    ],
)
def test_a_version_that_is_not_whole_is_named_served_or_not(models, refused, write_files, name, damage, message):
    for version in ("digits/3", "digits/10"):
        version_of_this_project(models / version)
        (models / version / "variables").write_bytes(b"weights")
        write_digests(models / version)
    _, printed = write_files(models)
    assert f"{models}/digits/2: assets.extra is missing, so its files can't be checked" in printed
    assert "digits/3" not in printed and "digits/10" not in printed
    damage(models / name)
    places = [f"--models={models}", f"--output={models.parent / 'other'}"]
    assert message in refused("export.serving_files", *places)
    assert not (models.parent / "other").exists()


def state_of(path):
    state = {"digits": "AVAILABLE", "late": "LOADING"}.get(path.removeprefix("/v1/models/"))
    if state is None:
        return 404, '{ "error": "Could not find any versions, \\"AVAILABLE\\"" }'
    return 200, f'{{\n "model_version_status": [\n  {{\n   "version": "3",\n   "state": "{state}"\n  }}\n ]\n}}\n'


def test_the_health_check_asks_every_model_with_bash_alone():
    def health(*names):
        # Nothing but bash's own commands can be found.
        environment = {"PATH": "/nowhere", "SERVING_REST_PORT": str(port)}
        command = ["/bin/bash", str(HEALTH_CHECK), *names]
        return subprocess.run(command, env=environment, capture_output=True, timeout=20).returncode

    with web_server(state_of) as port:
        assert health("digits") == health("digits", "digits") == 0
        assert health("late") == health("digits", "late") == health("missing") == 1
    assert health("digits") == 1
