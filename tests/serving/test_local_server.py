import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
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

from nvae_tf.serving.client import BadRequest, ModelNotFound, TooLarge
from nvae_tf.serving.local_server import LoadedVersion, local_server, message_from_array
from nvae_tf.serving.outputs import write_digests
from tests.command_fixtures import started_anew
from tests.serving.model_servers import IMAGES, PROTOCOLS, SEEDS, Servers, served, with_few_warm_ups

ONES = np.ones(4, np.float32)


def rest(servers, path, body=None):
    place = servers.texts if path.startswith("texts") else servers
    url = f"http://{place.rest}/v1/models/{path}"
    body = json.dumps(body) if isinstance(body, dict | list) else body
    answer = requests.get(url) if body is None else requests.post(url, data=body)
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status_code, answer.json()


def exchanged(servers, *pieces):
    """What the server sends on a connection until it closes it; further pieces are sent when there is an answer."""
    host, port = servers.rest.split(":")
    with socket.create_connection((host, int(port)), timeout=20.0) as connection:
        received = b""
        for piece in pieces:
            connection.sendall(piece)
            received += connection.recv(2**16)
        while piece := connection.recv(2**16):
            received += piece
    return received


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
        ("sample", {"seed": np.zeros(65, np.int64), "temperature": np.ones(65, np.float32)}, "65 rows in a request"),
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
    sample = {"signature_name": "sample"}
    for path, body, code, message in (
        ("tiny:predict", b"{", 400, "JSON Parse error"),
        ("tiny:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("tiny:predict", b"\xff", 400, "JSON Parse error"),
        ("tiny:predict", [1], 400, "Is not object"),
        ("tiny:predict", sample, 400, "give one of 'instances' and 'inputs'"),
        ("tiny:predict", sample | {"instances": []}, 400, "must be a list/array with values"),
        ("tiny:predict", {"signature_name": 5}, 400, "must be a string value"),
        ("tiny:predict", {"signature_name": "smaple", "inputs": {}}, 400, 'name: "smaple" not found'),
        ("tiny:predict", sample | {"inputs": [1]}, 400, "Missing named input: "),
        ("tiny:predict", sample | {"instances": [{"seed": 1}]}, 400, "element: 0 of 'instances' list; keys must be"),
        ("tiny:predict", sample | {"inputs": {"seed": ["x"], "temperature": [1]}}, 400, "input 'seed': a str where"),
        ("tiny:classify", {}, 501, "not offered"),
        ("tiny:other", {}, 400, "Malformed request"),
        ("digits:predict", {}, 404, "Servable not found for request: Latest(digits)"),
        ("tiny/versions/9:predict", {}, 404, "Specific(tiny, 9)"),
        ("tiny/labels/stable:predict", {}, 400, "Unrecognized servable version label: stable"),
        ("digits", None, 404, "digits"),
        ("tiny/versions/9", None, 404, "9"),
        ("..", None, 400, "Malformed request"),
        ("tiny/../../x", None, 400, "Malformed request"),
    ):
        found, answer = rest(local, path, body)
        assert (found, list(answer)) == (code, ["error"]) and message in answer["error"], (path, answer)


def test_rows_and_columns(local):
    rows = [{"seed": 5, "temperature": 1.0}, {"seed": 6, "temperature": 0.5}]
    columns = {"seed": [5, 6], "temperature": [1.0, 0.5], "more": "than there are"}
    code, by_row = rest(local, "tiny/versions/3:predict", {"signature_name": "sample", "instances": rows})
    assert code == 200 and len(by_row["predictions"]) == 2
    code, by_column = rest(local, "TINY:predict".lower(), {"signature_name": "sample", "inputs": columns})
    assert code == 200 and list(by_column) == ["outputs"]
    assert [row["image"] for row in by_row["predictions"]] == by_column["outputs"]["image"]
    # The decimals are as few as give the number back.
    numbers = np.ravel(by_column["outputs"]["image"])
    assert [str(np.float32(number)) for number in numbers] == [str(number) for number in numbers.tolist()]


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
    assert rest(local, "tiny") == rest(local, "tiny/versions/3") == (200, {"model_version_status": [status]})
    code, metadata = rest(local, "tiny/metadata")
    assert metadata["model_spec"] == {"name": "tiny", "signature_name": "", "version": "3"}
    seed = metadata["metadata"]["signature_def"]["signature_def"]["sample"]["inputs"]["seed"]
    assert seed["dtype"] == "DT_INT64"
    assert seed["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}


def test_answers_have_the_fields_that_tensorflow_serving_fills():
    kinds = (np.float32, np.float64, np.int32, np.int64, np.uint8, bool)
    for array in (np.array([[b"", b"\0", b"a\0"]], object), *(np.array([[0, 1], [3, 200]], kind) for kind in kinds)):
        message = message_from_array(array)
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
    with served("texts", texts_folder.parent, max_message_bytes=2**20) as servers:
        for protocol in PROTOCOLS:
            with servers.client(protocol, "texts") as client:
                with pytest.raises(TooLarge, match="fewer rows"):
                    client.predict("twice", value=large)
                assert client.predict("twice", value=large[:, :2])["value"].tolist() == [[0.0, 0.0]]


def test_concurrent_requests_give_the_sessions_numbers(local, run):
    temperatures = np.float32([1, 0.5, 2, 1])
    expected = run("sample", seed=SEEDS, temperature=temperatures)["image"]
    with local.client("grpc") as client, ThreadPoolExecutor(8) as pool:
        rows = [
            pool.submit(client.predict, "sample", seed=SEEDS[i : i + 1], temperature=temperatures[i : i + 1])
            for i in [0, 1, 2, 3] * 4
        ]
        found = np.concatenate([row.result()["image"] for row in rows])
    np.testing.assert_allclose(found, np.tile(expected, [4, 1, 1, 1]), atol=1e-5)


def test_the_newest_version_is_served_and_no_other(texts_folder, tmp_path):
    for number in ("2", "10"):
        shutil.copytree(texts_folder, tmp_path / number)
    with served("texts", tmp_path) as servers:
        for protocol in PROTOCOLS:
            with servers.client(protocol, "texts") as client:
                assert client.metadata().version == 10
            with servers.client(protocol, "texts", version=2) as client, pytest.raises(ModelNotFound, match="alone"):
                client.metadata()
            with servers.client(protocol, "texts", label="stable") as client, pytest.raises(BadRequest, match="labels"):
                client.metadata()


def test_a_version_that_cannot_be_loaded_is_reported_with_its_cause(folder, tmp_path):
    data = "variables/variables.data-00000-of-00001"
    for name, damage, message in (
        ("1", lambda folder: (folder / "saved_model.pb").write_bytes(b"damaged"), "Error parsing message"),
        ("2", lambda folder: (folder / "saved_model.pb").unlink(), "SavedModel file does not exist"),
        ("3", lambda folder: (folder / "variables" / "variables.index").write_bytes(b"damaged"), "too short"),
        ("4", lambda folder: (folder / data).write_bytes((folder / data).read_bytes()[:1000]), "Read less bytes"),
        ("5", lambda folder: (folder / data).unlink(), "No such file"),
    ):
        shutil.copytree(folder, tmp_path / name)
        damage(tmp_path / name)
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: can't be loaded (")) as raised:
            LoadedVersion(tmp_path / name)
        assert message in str(raised.value) and "Graph execution error" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_taken_port_is_refused(texts_folder, local):
    for ports in ({"port": int(local.grpc.split(":")[1])}, {"rest_port": int(local.rest.split(":")[1])}):
        with pytest.raises(OSError, match="can't be had"), local_server("texts", texts_folder.parent, **ports):
            pass


def test_http_as_browsers_and_curl_speak_it(texts_folder, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>hello</p>")
    with served("texts", texts_folder.parent, enable_cors=True, files={"/page.html": page}) as servers:
        url = f"http://{servers.rest}"
        answer = requests.get(f"{url}/page.html?x=1")
        assert answer.text == "<p>hello</p>" and answer.headers["Content-Type"].startswith("text/html")
        assert requests.get(f"{url}/other.html").status_code == 404
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        preflight = requests.options(f"{url}/v1/models/texts:predict", headers={"Origin": "http://x"} | asked)
        assert preflight.status_code == 200 and preflight.headers["Access-Control-Allow-Origin"] == "*"
        assert "Content-Type" in preflight.headers["Access-Control-Allow-Headers"]
        status, closing = b"GET /v1/models/texts HTTP/1.1\r\nHost: x\r\n", b"Connection: close\r\n\r\n"
        # One connection, two requests at once.
        assert exchanged(servers, status + b"\r\n" + status + closing).count(b"HTTP/1.1 200") == 2
        # A body that comes when the server asks for it; and one in pieces.
        body = b'{"signature_name": "twice", "inputs": [[1]]}'
        head = b"POST /v1/models/texts:predict HTTP/1.1\r\nHost: x\r\n"
        waiting = b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(body)
        received = exchanged(servers, head + waiting + closing, body)
        assert received.startswith(b"HTTP/1.1 100") and received.endswith(b'{"outputs":[[2.0]]}')
        chunks = b"Transfer-Encoding: chunked\r\n" + closing + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        assert exchanged(servers, head + chunks).endswith(b'{"outputs":[[2.0]]}')
        assert exchanged(servers, status.replace(b"GET", b"HEAD") + closing).endswith(b"\r\n\r\n")
        assert exchanged(servers, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
        outside = exchanged(servers, b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n" + closing)
        assert outside.startswith(b"HTTP/1.1 404")


@pytest.mark.slow
def test_two_thousand_idle_connections_do_not_stop_a_request(local):
    host, port = local.texts.rest.split(":")
    with contextlib.ExitStack() as stack:
        for number in range(2000):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10.0))
            if number % 2:  # some have begun a request
                connection.sendall(b"POST /v1/models/texts:predict HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
        answer = rest(local, "texts:predict", {"signature_name": "twice", "inputs": [[2.0]]})
        assert answer == (200, {"outputs": [[4.0]]})
        with local.client("grpc", "texts") as client:
            assert client.predict("twice", value=[[2.0]])["value"] == [[4.0]]


@pytest.mark.slow
def test_the_command_serves_until_sigterm(texts_folder):
    flags = [f"--path={texts_folder.parent}", "--model=texts", "--port=0", "--rest_port=0"]
    with started_anew(["-m", "export.serve", *flags], stderr=subprocess.PIPE) as process:
        try:
            ready = process.stdout.readline()
            ports = re.fullmatch(r"ready: gRPC on 127.0.0.1:(\d+), REST on 127.0.0.1:(\d+)\n", ready).groups()
            servers = Servers(*(f"127.0.0.1:{port}" for port in ports))
            for protocol in PROTOCOLS:
                with servers.client(protocol, "texts") as client:
                    assert client.predict("twice", value=[[2.0]])["value"] == [[4.0]]
            with socket.create_connection(("127.0.0.1", int(ports[1]))):  # a connection that waits stops no end
                process.send_signal(signal.SIGTERM)
                printed, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0 and printed == "ended\n" and "Traceback" not in errors
    assert f"{texts_folder}: assets.extra is missing, so its files can't be checked" in errors


def test_the_command_reports_mistakes(texts_folder, tmp_path, refused):
    damaged = shutil.copytree(texts_folder, tmp_path / "damaged" / "1")
    (damaged / "assets.extra").mkdir()
    write_digests(damaged)
    (damaged / "saved_model.pb").write_bytes((damaged / "saved_model.pb").read_bytes() + b"x")
    for flags, message in (
        (["--path=missing"], "missing: no such folder"),
        (["--path={texts}/1"], "is one version; name the folder of all versions, {texts}"),
        (["--path={empty}"], "no numbered versions in it"),
        (["--path={empty}/damaged"], "{empty}/damaged/1: saved_model.pb damaged or changed; copy the export anew"),
        ([], "give --path, a folder of versions, or --model"),
        (["--path={texts}", "--explore"], "{texts}/1: nvae-export has not made it"),
        (["--path={texts}", "--samples={texts}/1/saved_model.pb"], "saved_model.pb is a file, not a folder"),
    ):
        places = {"texts": texts_folder.parent, "empty": tmp_path}
        assert message.format(**places) in refused("export.serve", *(flag.format(**places) for flag in flags))


@pytest.mark.slow
def test_both_protocols_give_the_same_picture_of_a_warm_export(folder, tmp_path, done, monkeypatch):
    ran, run = [], LoadedVersion.run
    monkeypatch.setattr(LoadedVersion, "run", lambda self, *given: ran.append(given) or run(self, *given))
    export, output = with_few_warm_ups(folder, tmp_path, "encode", "score_png"), tmp_path / "new"
    printed = done("export.serve", f"--path={export.parent}", "--port=0", "--rest_port=0", f"--samples={output}")
    assert [name for name, *_ in ran[:2]] == ["encode", "score_png"]
    # Nobody names outputs, which TensorFlow Serving would make another graph for, and warm that up anew.
    assert not any(list(outputs) for _, _, *filters in ran for outputs in filters)
    by_grpc, by_rest = (np.asarray(Image.open(output / f"served_{name}.png")) for name in PROTOCOLS)
    np.testing.assert_array_equal(by_grpc, by_rest)
    assert by_grpc.std() > 0
    assert printed.startswith("ready: ") and "64 images in " in printed
