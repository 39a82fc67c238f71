import contextlib
import functools
import itertools
import json
import logging
import re
import shutil
import signal
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
import requests
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from nvae_tf.serving.client import ServedModel, ServingError, json_array
from nvae_tf.serving.local_server import LoadedModel, local_server, message_from_array
from nvae_tf.serving.outputs import write_digests
from tests import refuses
from tests.command_fixtures import started_anew
from tests.serving.model_servers import IMAGES, PROTOCOLS, SEEDS, served, with_few_warm_ups

ONES = np.ones(4, np.float32)


def rest(servers, path, body=None):
    place = servers.texts if path.startswith("texts") else servers
    url = f"http://{place.rest}/v1/models/{path}"
    body = json.dumps(body) if isinstance(body, dict | list) else body
    answer = requests.get(url) if body is None else requests.post(url, data=body)
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status_code, answer.json()


@pytest.mark.slow
def test_malformed_requests_are_refused_and_the_server_goes_on(local):
    large = tf.make_tensor_proto(np.zeros([1, 60], np.float32))  # a tensor that lies about its shape
    large.tensor_shape.dim[0].size = 10**9
    for signature, inputs, message in (
        ("sample", {"seed": SEEDS.astype(np.float32), "temperature": ONES}, "the signature takes {'seed': 'int64'"),
        ("sample", {"seed": SEEDS, "temperature": -ONES}, "temperature: values must be finite and above 0"),
        ("sample", {"seed": SEEDS}, "inputs {'seed': 'int64'}: the signature takes"),
        ("encode", {"image": IMAGES.reshape(4, -1), "seed": SEEDS}, "Cannot feed value of shape (4, 192)"),
        ("sample", {"seed": np.zeros(65, np.int64), "temperature": np.ones(65, np.float32)}, "65 rows in a request"),
        ("decode", {"latent": large}, "can't be read"),
    ):
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "tiny", signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(array if array is large else tf.make_tensor_proto(array))
        with grpc.insecure_channel(local.grpc) as channel, pytest.raises(grpc.RpcError) as raised:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT and message in raised.value.details()
        with local.client("grpc") as client:
            assert client.predict("sample", seed=[1], temperature=[1.0])["image"].shape == (1, 8, 8, 3)


SAMPLE = {"signature_name": "sample"}


def test_wrong_rest_requests_get_their_status(local):
    for path, body, code, message in (
        ("tiny:predict", b"[" * 100_000, 400, "the body is no JSON"),
        ("tiny:predict", {"signature_name": "smaple", "inputs": {}}, 400, "no signature 'smaple'; the model has"),
        ("tiny:predict", SAMPLE | {"instances": [{"seed": 1}]}, 400, "each with seed, temperature"),
        ("tiny:predict", SAMPLE | {"inputs": {"seed": ["x"], "temperature": [1]}}, 400, "input 'seed': a str where"),
        ("tiny:classify", {}, 405, "Method Not Allowed"),
        ("digits:predict", {}, 404, "model digits, version None, label ''"),
        ("tiny/versions/9:predict", {}, 404, "version 9, label '': this server for trials has version 3 of tiny alone"),
        ("..", None, 404, "Not Found"),
    ):
        status, answer = rest(local, path, body)
        assert (status, list(answer)) == (code, ["error"]) and message in answer["error"], answer


def test_json_that_is_no_array_is_refused():
    for value, dtype, message in (
        ([[1, 2], [3]], "int32", "different lengths"),
        ([1.5], "int64", "a float where int64 is wanted"),
        ([True], "float32", "a bool where float32 is wanted"),
        (["x" * 2**15] + [1] * 2**14, "float32", "a str where float32 is wanted"),
        (functools.reduce(lambda nested, _: [nested], range(70), "x"), "string", "nested too deep"),
    ):
        refuses(message, json_array, value, dtype)
    assert json_array("x", "string").shape == ()


def test_inputs_of_another_depth_are_refused_in_one_line(local):
    deep = functools.reduce(lambda nested, _: [nested], range(40), 5)
    for signature, inputs in (
        ("sample", {"seed": deep, "temperature": [1.0]}),
        ("score_png", {"image_bytes": {"b64": "AAAA"}, "seed": [1]}),
    ):
        code, answer = rest(local, "tiny:predict", {"signature_name": signature, "inputs": inputs})
        assert code == 400 and "\n" not in answer["error"]


def test_rows_and_columns(local):
    rows = [{"seed": 5, "temperature": 1.0}, {"seed": 6, "temperature": 0.5}]
    columns = {"seed": [5, 6], "temperature": [1.0, 0.5]}
    code, by_row = rest(local, "tiny/versions/3:predict", {"signature_name": "sample", "instances": rows})
    assert code == 200 and len(by_row["predictions"]) == 2
    code, by_column = rest(local, "tiny:predict", {"signature_name": "sample", "inputs": columns})
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


def test_answers_have_the_fields_that_tensorflow_serving_fills():
    for array in (np.array([[b"", b"\0"]], object), *(np.array([[0, 1], [3, 200]], kind) for kind in "fdilB?")):
        message = message_from_array(array)
        assert not message.tensor_content
        np.testing.assert_array_equal(tf.make_ndarray(message), array)


def test_messages_over_the_limit_are_refused(texts_folder, monkeypatch):
    monkeypatch.setattr("nvae_tf.serving.local_server.MESSAGE_BYTES", 2**20)
    large = np.zeros([1, 400_000], np.float32)
    with served("texts", texts_folder.parent) as servers:
        for protocol in PROTOCOLS:
            with servers.client(protocol, "texts") as client:
                refuses("RESOURCE_EXHAUSTED.*fewer rows", client.predict, "twice", value=large, error=ServingError)
                assert client.predict("twice", value=large[:, :2])["value"].tolist() == [[0.0, 0.0]]


def test_a_version_that_cannot_be_loaded_is_reported_with_its_cause(folder, tmp_path):
    data = "variables/variables.data-00000-of-00001"
    for name, damage, message in (
        ("1", lambda folder: (folder / "saved_model.pb").write_bytes(b"damaged"), "Error parsing message"),
        ("4", lambda folder: (folder / data).write_bytes((folder / data).read_bytes()[:1000]), "Read less bytes"),
    ):
        shutil.copytree(folder, tmp_path / name)
        damage(tmp_path / name)
        text = refuses(re.escape(f"{tmp_path / name}: can't be loaded ("), LoadedModel, "texts", tmp_path / name)
        assert message in text and "Graph execution error" not in text
        assert "\n" not in text


def test_the_newest_version_is_served_and_no_other(texts_folder, tmp_path):
    for number in ("2", "10"):
        shutil.copytree(texts_folder, tmp_path / number)
    with contextlib.closing(logging.FileHandler(tmp_path / "log")) as log:
        with served("texts", tmp_path) as servers, servers.client("grpc", "texts", label="stable") as client:
            refuses("version 10 of texts alone .NOT_FOUND", client.metadata, error=ServingError)
        assert log.stream, "the server has closed a log of the process that it is in"


def test_a_taken_port_is_refused(texts_folder, local):
    for ports in ({"port": int(local.grpc.split(":")[1])}, {"rest_port": int(local.rest.split(":")[1])}):
        with pytest.raises(OSError, match="can't be had"), local_server("texts", texts_folder.parent, **ports):
            pass


def test_http_as_browsers_and_curl_speak_it(texts_folder, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>hello</p>")
    with served("texts", texts_folder.parent, enable_cors=True, pages=tmp_path) as servers:
        url = f"http://{servers.rest}"
        answer = requests.get(f"{url}/page.html?x=1")
        assert answer.text == "<p>hello</p>" and answer.headers["Content-Type"].startswith("text/html")
        assert requests.get(f"{url}/other.html").status_code == 404
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        preflight = requests.options(f"{url}/v1/models/texts:predict", headers={"Origin": "http://x"} | asked)
        assert preflight.status_code == 200 and preflight.headers["Access-Control-Allow-Origin"] == "*"
        assert requests.get(f"{url}/..%2f..%2fetc/passwd").status_code == 404


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
def test_a_signal_during_the_start_of_the_command_ends_it_at_once(folder):
    flags = [f"--path={folder.parent}", "--port=0", "--rest_port=0"]
    with started_anew(["-m", "export.serve", *flags], stderr=subprocess.PIPE) as process:
        while "starting TensorFlow" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=15)
    assert process.returncode == 130 and printed == "" and errors.endswith("interrupted\n")


def test_the_command_reports_mistakes(texts_folder, tmp_path, refused):
    damaged = shutil.copytree(texts_folder, tmp_path / "damaged" / "1")
    (damaged / "assets.extra").mkdir()
    write_digests(damaged)
    (damaged / "saved_model.pb").write_bytes((damaged / "saved_model.pb").read_bytes() + b"x")
    for flags, message in (
        (["--path={texts}/1"], "{texts}/1: no numbered versions in it"),
        (["--path={empty}/damaged"], "{empty}/damaged/1: saved_model.pb missing, changed"),
        ([], "give --path, a folder of versions, or --model"),
        (["--path={texts}", "--explore"], "{texts}/1/assets.extra: not written by nvae-export"),
        (["--path={texts}", "--samples={texts}/1/saved_model.pb"], "saved_model.pb is a file, not a folder"),
    ):
        places = {"texts": texts_folder.parent, "empty": tmp_path}
        assert message.format(**places) in refused("export.serve", *(flag.format(**places) for flag in flags))


@pytest.mark.slow
def test_both_protocols_give_the_same_picture_of_a_warm_export(folder, tmp_path, done, monkeypatch):
    ran, run = [], LoadedModel.run
    monkeypatch.setattr(LoadedModel, "run", lambda self, *given: ran.append(given) or run(self, *given))
    export, output = with_few_warm_ups(folder, tmp_path, "encode", "score_png"), tmp_path / "new"
    printed = done("export.serve", f"--path={export.parent}", "--port=0", "--rest_port=0", f"--samples={output}")
    assert [name for name, *_ in ran[:2]] == ["encode", "score_png"]
    by_grpc, by_rest = (np.asarray(Image.open(output / f"served_{name}.png")) for name in PROTOCOLS)
    np.testing.assert_array_equal(by_grpc, by_rest)
    assert by_grpc.std() > 0
    assert printed.startswith("ready: ") and "64 images in " in printed


# Ten thousand requests, valid and malformed ones, to a server in a process of its own.
REQUESTS, THREADS = 10_000, 16
VALID = json.dumps({"signature_name": "twice", "inputs": [[1.5, 2.0]]}).encode()


def post(body, length=None, path="/v1/models/texts:predict"):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


# What is sent, and the status of the answer; 0 where the connection is broken off instead.
MALFORMED = [
    (post(VALID, len(VALID) + 10), "0"),
    (b"POST /v1/models/texts:predict HTT", "0"),
    (post(VALID), "0"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
    # The server may refuse it before it has read all, and so reset the connection: no answer can be expected.
    (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400|404|reset"),
    (post(b"", "-5"), "400"),
    (post(b'{"inputs": ' + b"[" * 200_000), "400"),
    (post(b'{"signature_name": "twice", "inputs": [' + b"[]," * 5_000 + b"[]]}"), "400"),
    (post(b"\xff\xfe{"), "400"),
    (post(VALID, path="/v1/models/%2e%2e%2f%00:predict"), "404"),
]


def send(port, content, status):
    may_be_reset = contextlib.suppress(ConnectionError) if "reset" in status else contextlib.nullcontext()
    with may_be_reset, socket.create_connection(("127.0.0.1", port), timeout=30.0) as connection:
        connection.sendall(content)
        if status == "0":  # broken off, not ended
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            assert re.match(rf"HTTP/1.1 ({status}) ".encode(), connection.recv(2**16))


@pytest.mark.slow
def test_ten_thousand_mixed_requests_do_the_command_no_harm_and_it_serves_until_sigterm(texts_folder, tmp_path):
    flags = [f"--path={texts_folder.parent}", "--model=texts", "--port=0", "--rest_port=0"]
    log, memory, wrong = tmp_path / "log", [], itertools.cycle(MALFORMED)
    with log.open("w") as errors, started_anew(["-m", "export.serve", *flags], stderr=errors) as process:
        try:
            grpc_port, rest_port = (int(port) for port in re.findall(r":(\d+)", process.stdout.readline()))
            urls = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{rest_port}"
            clients = [ServedModel(url, "texts", timeout=30.0) for url in urls]

            def ask(number):
                if number % 10 in (3, 6, 9):
                    return send(rest_port, *next(wrong))
                assert clients[number % 2].predict("twice", value=[[1.5, 2.0]])["value"].tolist() == [[3.0, 4.0]]

            with ThreadPoolExecutor(THREADS) as pool:
                for number, _ in enumerate(pool.map(ask, range(REQUESTS)), 1):
                    if number % (REQUESTS // 10) == 0:
                        memory.append(psutil.Process(process.pid).memory_info().rss)
            with socket.create_connection(("127.0.0.1", rest_port)):  # a connection that waits stops no end
                process.send_signal(signal.SIGTERM)
                assert process.communicate(timeout=20) == ("ended\n", None) and process.returncode == 0
        finally:
            process.kill()
    assert memory[-1] - memory[2] < 64 * 2**20, memory
    printed = log.read_text()
    assert "Traceback" not in printed and f"{texts_folder}: assets.extra is missing, so its" in printed, printed[-3000:]
