import json
import re
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from nvae_tf.serving.client import ModelNotFound, Patience, ServerNotReady, TooLarge
from nvae_tf.serving.local_server import LocalServer, _tensor_in_fields
from nvae_tf.serving.served_versions import Batcher, Batching, LoadedVersion, RequestError, State
from tests.command_fixtures import started, until
from tests.serving.model_servers import IMAGES, SEEDS, Servers, local_servers, served

ONES = np.ones(4, np.float32)


def rest(servers, path, body=None, **arguments):
    url = f"http://{servers.rest}/v1/models/{path}"
    body = json.dumps(body) if isinstance(body, dict | list) else body
    answer = requests.get(url) if body is None else requests.post(url, data=body, **arguments)
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status_code, answer.json()


def assert_invalid(servers, request, message=""):
    with grpc.insecure_channel(servers.grpc) as channel, pytest.raises(grpc.RpcError) as raised:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT and message in raised.value.details()


@pytest.mark.slow
def test_malformed_requests_are_refused_and_the_server_goes_on(local):
    for signature, inputs, message in (
        ("sample", {"seed": SEEDS.astype(np.float32), "temperature": ONES}, "input 'seed' is float32[4]; give int64"),
        ("sample", {"seed": SEEDS, "temperature": -ONES}, "temperature: values must be finite and above 0"),
        ("sample", {"seed": SEEDS, "temperature": ONES * np.nan}, "temperature: values must be finite"),
        ("sample", {"seed": SEEDS[:2], "temperature": ONES}, "different numbers of rows"),
        ("sample", {"seed": SEEDS}, "input 'temperature' is missing"),
        ("encode", {"image": IMAGES * np.nan, "seed": SEEDS}, "image: values must be finite"),
        ("encode", {"image": IMAGES.reshape(4, -1), "seed": SEEDS}, "input 'image' is float32[4, 192]"),
        ("decode", {"latent": np.zeros([2_500_000], np.float32)}, "input 'latent' is float32[2500000]"),
        ("decode", {"latent": np.array([bytes(10**7)], object)}, "input 'latent' is string[1]"),
        ("sample", {"seed": np.zeros(1025, np.int64), "temperature": np.ones(1025, np.float32)}, "1,025 rows in a"),
    ):
        # By gRPC's own stub: no client checks it.
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "tiny", signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        assert_invalid(local, request, message)
        texts = [{"b64": "AAAA"}]
        columns = {name: texts if array.dtype == object else array.tolist() for name, array in inputs.items()}
        code, answer = rest(local, "tiny:predict", {"signature_name": signature, "inputs": columns})
        assert code == 400 and list(answer) == ["error"]
        with local.client("grpc") as client:
            assert client.predict("sample", seed=[1], temperature=[1.0])["image"].shape == (1, 8, 8, 3)
    # A tensor that lies about its shape.
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "tiny", "decode"
    for rows in (1000, 10**9):
        message = tf.make_tensor_proto(np.zeros([1, 60], np.float32))
        message.tensor_shape.dim[0].size = rows
        request.inputs["latent"].CopyFrom(message)
        assert_invalid(local, request)


def test_wrong_rest_requests_get_their_status(local):
    for path, body, code, message in (
        ("tiny:predict", b"{", 400, "JSON Parse error"),
        ("tiny:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("tiny:predict", [1], 400, "must be a JSON object"),
        ("tiny:predict", {}, 400, "give one of 'instances' and 'inputs'"),
        ("tiny:predict", {"instances": []}, 400, "a list of one row"),
        ("tiny:predict", {"signature_name": "smaple", "inputs": {}}, 400, 'key "smaple" not found'),
        ("tiny:predict", {"signature_name": "sample", "inputs": [1]}, 400, "inputs without names"),
        ("tiny:predict", {"signature_name": "sample", "instances": [{"seed": 1}, {}]}, 400, "instance 1 has inputs []"),
        ("tiny:classify", {}, 501, "not offered"),
        ("tiny:other", {}, 400, "Malformed request"),
        ("digits:predict", {}, 404, "Servable not found for request: Latest(digits)"),
        ("tiny/versions/9:predict", {}, 404, "Specific(tiny, 9)"),
        ("tiny/labels/canary:predict", {}, 400, "Unrecognized servable version label: canary"),
        ("digits", None, 404, "Servable not found"),
        ("tiny/versions/9", None, 404, "Could not find version 9 of model tiny"),
        ("../tiny", None, 400, "Malformed request"),
    ):
        found, answer = rest(local, path, body)
        assert (found, list(answer)) == (code, ["error"]) and message in answer["error"]


def test_rows_and_columns(local):
    rows = [{"seed": 5, "temperature": 1.0}, {"seed": 6, "temperature": 0.5}]
    columns = {"seed": [5, 6], "temperature": [1.0, 0.5]}
    code, by_row = rest(local, "tiny/versions/3:predict", {"signature_name": "sample", "instances": rows})
    assert code == 200 and len(by_row["predictions"]) == 2
    code, by_column = rest(local, "tiny/labels/stable:predict", {"signature_name": "sample", "inputs": columns})
    assert code == 200 and list(by_column) == ["outputs"]
    assert [row["image"] for row in by_row["predictions"]] == by_column["outputs"]["image"]


def test_bytes_are_base64_both_ways_and_a_single_input_needs_no_name(local):
    expected = [
        {"image_bytes": {"b64": "AP8A"}, "size": 0, "word": "wörd"},
        {"image_bytes": {"b64": "aGkA/wA="}, "size": 2, "word": "wörd"},
    ]
    for rows in ([{"b64": ""}, {"b64": "aGk="}], ["", "hi"], [{"image_bytes": ""}, {"image_bytes": {"b64": "aGk="}}]):
        body = {"signature_name": "echo_png", "instances": rows}
        assert rest(local, "texts:predict", body) == (200, {"predictions": expected})
    body = {"signature_name": "twice", "inputs": [[1.5, 2.0]]}
    assert rest(local, "texts:predict", body) == (200, {"outputs": [[3.0, 4.0]]})


def test_rest_status_and_metadata_are_servings(local):
    status = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert rest(local, "tiny") == (200, {"model_version_status": [status]})
    code, metadata = rest(local, "tiny/metadata")
    assert metadata["model_spec"] == {"name": "tiny", "signature_name": "", "version": "3"}
    seed = metadata["metadata"]["signature_def"]["signature_def"]["sample"]["inputs"]["seed"]
    assert seed["dtype"] == "DT_INT64"
    assert seed["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}


def test_answers_have_the_fields_that_tensorflow_serving_fills():
    kinds = (np.float32, np.float64, np.int32, np.int64, np.uint8, bool)
    for array in (np.array([[b"", b"\0", b"a\0"]], object), *(np.array([[0, 1], [3, 200]], kind) for kind in kinds)):
        message = _tensor_in_fields(array)
        assert not message.tensor_content
        np.testing.assert_array_equal(tf.make_ndarray(message), array)


def test_calls_that_are_not_offered_are_unimplemented(local):
    with grpc.insecure_channel(local.grpc) as channel:
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        for call, request in (
            (predictions.Classify, classification_pb2.ClassificationRequest()),
            (predictions.MultiInference, inference_pb2.MultiInferenceRequest()),
            (models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=5)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_messages_over_the_limit_are_refused(texts_folder):
    large = np.zeros([1, 400_000], np.float32)
    with local_servers(served("texts", texts_folder.parent), max_message_bytes=2**20) as servers:
        for protocol in ("grpc", "rest"):
            with servers.client(protocol, "texts") as client:
                with pytest.raises(TooLarge, match="fewer rows"):
                    client.predict("twice", value=large)
                assert client.predict("twice", value=large[:, :2])["value"].tolist() == [[0.0, 0.0]]


def test_concurrent_requests_give_the_sessions_numbers_with_batching_and_without(folder, local, run):
    temperatures = np.float32([1, 0.5, 2, 1])
    expected = run("sample", seed=SEEDS, temperature=temperatures)["image"]
    batching = Batching(max_batch_size=4, timeout=0.05)
    with local_servers(served("tiny", folder.parent, batching=batching)) as batched:
        for servers in (local, batched):
            with servers.client("grpc") as client, ThreadPoolExecutor(8) as pool:
                rows = [
                    pool.submit(client.predict, "sample", seed=SEEDS[i : i + 1], temperature=temperatures[i : i + 1])
                    for i in [0, 1, 2, 3] * 4
                ]
                found = np.concatenate([row.result()["image"] for row in rows])
            np.testing.assert_allclose(found, np.tile(expected, [4, 1, 1, 1]), atol=1e-5)


def test_batches_are_filled_or_wait_a_moment_and_a_bad_row_fails_its_own_request_alone():
    sizes = []

    def run(signature, arrays, outputs):
        sizes.append(len(arrays["x"]))
        if arrays["x"].max() > 99:
            raise ValueError("too large")
        return {"y": arrays["x"] + 1}

    full, waiting = Batcher(run, Batching(4, 10.0)), Batcher(run, Batching(8, 0.5))
    with ThreadPoolExecutor(3) as pool:
        rows = [np.int32(row) for row in ([1, 2], [100], [3])]
        found = [pool.submit(full.run, "sum", {"x": row}, ("y",)) for row in rows]
    assert found[0].result()["y"].tolist() == [2, 3] and found[2].result()["y"].tolist() == [4]
    with pytest.raises(ValueError, match="too large"):
        found[1].result()
    assert sizes[0] == 4 and sorted(sizes[1:]) == [1, 1, 2]
    began = time.monotonic()
    waiting.run("sum", {"x": rows[0]}, ("y",))
    assert 0.4 < time.monotonic() - began < 5.0
    waiting.run("sum", {"x": np.zeros([20], np.int32)}, ("y",))  # too large for a batch: at once
    assert time.monotonic() - began < 5.0 and sizes[-2:] == [2, 20]


def versions_of(client):
    return {status.version: status.state for status in client.model_status()}


def test_versions_come_and_go(texts_folder, tmp_path):
    path = tmp_path / "texts"
    shutil.copytree(texts_folder, path / "1")
    models = served("texts", path, labels={"stable": 1, "canary": 3})
    with local_servers(models) as servers, servers.client("grpc", "texts") as client:
        stable = servers.client("grpc", "texts", label="stable")
        canary = servers.client("rest", "texts", label="canary")
        assert client.metadata().version == stable.metadata().version == 1
        with pytest.raises(ModelNotFound, match=re.escape("Specific(texts, 3)")):
            canary.metadata()
        (path / "4").mkdir()  # half-copied: passed over, then tried and told
        (path / "5").mkdir()
        (path / "5" / "saved_model.pb").write_bytes(b"damaged")
        until(lambda: versions_of(client).get(5) == "END")
        assert next(status.error for status in client.model_status() if status.version == 5)
        assert client.metadata().version == 1 and 4 not in versions_of(client)
        for number in (2, 3):
            shutil.copytree(texts_folder, tmp_path / "copy")
            (tmp_path / "copy").rename(path / str(number))
            until(lambda number=number: versions_of(client).get(number) == "AVAILABLE")
            assert client.metadata().version == number and stable.metadata().version == 1
        until(lambda: versions_of(client) == {1: "AVAILABLE", 2: "END", 3: "AVAILABLE", 5: "END"})
        assert canary.metadata().version == 3
        shutil.rmtree(path / "3")
        until(lambda: client.metadata().version == 2)
        shutil.rmtree(path / "5")
        shutil.copytree(texts_folder, path / "5")
        until(lambda: client.metadata().version == 5)


def test_a_version_is_not_closed_under_a_request(texts_folder, tmp_path):
    shutil.copytree(texts_folder, tmp_path / "1")
    with served("texts", tmp_path) as versions:
        assert versions.wait_until_looked(60)
        with versions.using() as version:
            shutil.rmtree(tmp_path / "1")
            until(lambda: versions.statuses()[1].state == State.UNLOADING)
            with pytest.raises(RequestError), versions.using():
                pass
            assert version.run("twice", {"value": np.float32([[1]])})["value"] == [[2.0]]
        until(lambda: versions.statuses()[1].state == State.END)


def test_a_model_that_is_being_loaded_is_unavailable(texts_folder, monkeypatch, tmp_path):
    go_on = threading.Event()
    load = LoadedVersion.__init__
    monkeypatch.setattr(LoadedVersion, "__init__", lambda *arguments: go_on.wait(20) and load(*arguments))
    for version in ("1", "2"):
        shutil.copytree(texts_folder, tmp_path / version)
    with LocalServer([served("texts", tmp_path, labels={"old": 1})]) as server:
        servers = Servers(f"127.0.0.1:{server.port}", f"127.0.0.1:{server.rest_port}")
        for protocol in ("grpc", "rest"):
            with servers.client(protocol, "texts") as client, pytest.raises(ServerNotReady, match="is being loaded"):
                client.metadata()
        with servers.client("grpc", "texts", patience=Patience(tries=50, first_wait=0.05)) as client:
            until(lambda: versions_of(client) == {1: "LOADING", 2: "LOADING"})
            # Also the one that is behind another.
            with servers.client("grpc", "texts", label="old") as waiting, pytest.raises(ServerNotReady):
                waiting.metadata()
            threading.Timer(0.2, go_on.set).start()
            assert client.predict("twice", value=[[2.0]])["value"] == [[4.0]]


def test_a_taken_port_and_a_label_without_its_version_are_refused(texts_folder, local):
    path = texts_folder.parent
    for ports in ({"port": int(local.grpc.split(":")[1])}, {"rest_port": int(local.rest.split(":")[1])}):
        with pytest.raises(OSError, match="can't be had"):
            LocalServer([served("texts", path)], **ports)
    with LocalServer([served("texts", path, labels={"stable": 7})]) as server:
        with pytest.raises(ValueError, match=f"--label=stable=7: {path} has no version 7"):
            server.wait_until_ready(threading.Event())


def test_the_command_serves_until_sigterm(texts_folder):
    flags = [f"--path={texts_folder.parent}", "--model=texts", "--port=0", "--rest_port=0", "--label=old=1"]
    with started(["-m", "export.serve", *flags], stderr=subprocess.PIPE) as process:
        try:
            ready = process.stdout.readline()
            ports = re.fullmatch(r"ready: gRPC on 127.0.0.1:(\d+), REST on 127.0.0.1:(\d+)\n", ready).groups()
            with Servers(*(f"127.0.0.1:{port}" for port in ports)).client("grpc", "texts", label="old") as client:
                assert client.predict("twice", value=[[2.0]])["value"] == [[4.0]]
            process.send_signal(signal.SIGTERM)
            printed, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0 and printed == "ended\n" and "Traceback" not in errors


def test_the_command_reports_mistakes(texts_folder, tmp_path, refused):
    for flags, message in (
        (["--model=a", "--path=missing"], "--path=missing: no such folder"),
        (["--model=a", "--path={texts}/1"], "is one version; name the folder of all versions, {texts}"),
        (["--model=a", "--path={empty}"], "no numbered versions in it"),
        (["--model=a", "--path={texts}", "--label=stable"], "give LABEL=VERSION"),
    ):
        places = {"texts": texts_folder.parent, "empty": tmp_path}
        assert message.format(**places) in refused("export.serve", *(flag.format(**places) for flag in flags))


@pytest.mark.slow
def test_both_protocols_give_the_same_picture(folder, tmp_path, done):
    output = tmp_path / "new"
    flags = [f"--path={folder.parent}", f"--output={output}", "--count=5", "--temperature=0.7"]
    printed = done("export.try_serving", *flags)
    by_grpc, by_rest = (np.asarray(Image.open(output / f"served_{name}.png")) for name in ("grpc", "rest"))
    np.testing.assert_array_equal(by_grpc, by_rest)
    assert by_grpc.std() > 0
    assert printed.startswith("ready: ") and "5 images in " in printed
