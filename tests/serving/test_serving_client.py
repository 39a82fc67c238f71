import contextlib
import functools
import json
import re
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from nvae_tf.generation.image_grid import pil_images
from nvae_tf.serving import client as clients
from nvae_tf.serving.client import RestTransport, ServedModel, TensorSpec, image_arrays
from nvae_tf.serving.wire import array_from_json
from tests import ROOT
from tests.command_fixtures import output_of
from tests.serving.model_servers import IMAGES, PROTOCOLS, SEEDS, free_port, served


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(clients, "FIRST_WAIT", 0.01)


def test_strings_keep_every_byte(servers, protocol):
    given = [b"\x89PNG\r\n\x1a\n\x00", b"", "wört"]
    with servers.client(protocol, "texts") as client:
        found = client.predict("echo_png", image_bytes=given)
    texts = [*given[:2], "wört".encode()]
    assert found["image_bytes"].tolist() == [text + b"\x00\xff\x00" for text in texts]
    assert found["size"].tolist() == [len(text) for text in texts] and found["size"].dtype == np.int32
    assert found["word"].tolist() == ["wörd".encode()] * 3


def test_metadata_and_status(client, servers, protocol):
    metadata = client.metadata()
    assert metadata.version == 3
    sample = metadata.signatures["sample"]
    assert sample.inputs == {"seed": TensorSpec("int64", (None,)), "temperature": TensorSpec("float32", (None,))}
    assert sample.outputs["image"] == TensorSpec("float32", (None, 8, 8, 3))
    assert client.model_status() == [(3, "AVAILABLE", "")]
    with servers.client(protocol, version=3) as other:
        assert other.predict("sample", seed=[1], temperature=[1.0])["image"].shape == (1, 8, 8, 3)


def test_an_unknown_model_or_version_is_reported(servers, protocol):
    for arguments, named in [({"model": "digits"}, "model 'digits'"), ({"version": 9}, "model 'tiny' version 9")]:
        with servers.client(protocol, **arguments) as client:
            with pytest.raises(clients.ModelNotFound) as raised:
                client.predict("sample", seed=[1], temperature=[1.0])
        assert str(raised.value).startswith(f"{servers.url(protocol)}, {named}: ") and "\n" not in str(raised.value)


def test_inputs_that_do_not_fit_are_reported_and_not_sent(client, monkeypatch):
    for signature, inputs, message in (
        ("smaple", {}, "no such signature; did you mean 'sample'?"),
        ("sample", {"sead": SEEDS}, "no input 'sead'; did you mean 'seed'?"),
        ("sample", {"seed": SEEDS}, "input 'temperature' is missing; give float32[?]"),
        ("sample", {"seed": SEEDS, "temperature": np.ones(4)}, "is float64[4]; give float32[?], e.g. array.astype"),
        ("sample", {"seed": [1, 2], "temperature": [1.0]}, "different numbers of rows: seed 2, temperature 1"),
        ("encode", {"image": IMAGES[:, :7], "seed": SEEDS}, "is float32[4, 7, 8, 3]; give float32[?, 8, 8, 3]"),
        ("encode", {"image": [[1.0], [1.0, 2.0]], "seed": SEEDS}, "input 'image' is no array"),
    ):
        monkeypatch.setattr(client.transport, "predict", lambda *arguments: pytest.fail("was sent"))
        with pytest.raises(clients.BadRequest, match=re.escape(message)) as raised:
            client.predict(signature, **inputs)
        assert "\n" not in str(raised.value) and str(raised.value).count("model 'tiny'") == 1


class Scripted:
    """In place of a connection: raises the given errors one after another, then answers with the rows plus 1."""

    def __init__(self, *errors, versions=("DT_FLOAT",), seconds=0.0):
        self.errors, self.versions, self.seconds, self.asked = list(errors), list(versions), seconds, []

    def predict(self, signature, arrays, spec, seconds):
        self.asked.append(seconds)
        time.sleep(self.seconds)
        if self.errors and (error := self.errors.pop(0)):
            raise error
        return {"image": arrays["latent"] + 1}

    def metadata(self, seconds):
        dtype = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        tensor = {"dtype": dtype, "tensor_shape": {"dim": [{"size": "-1"}, {"size": "1"}]}}
        definitions = {"decode": {"inputs": {"latent": tensor}, "outputs": {"image": tensor}}}
        return {"model_spec": {"version": "1"}, "metadata": {"signature_def": {"signature_def": definitions}}}

    def close(self):
        pass


def scripted(*errors, versions=("DT_FLOAT",), seconds=0.0, **arguments):
    model = ServedModel("http://nowhere", "model", **arguments)
    model.transport = Scripted(*errors, versions=versions, seconds=seconds)
    return model, model.transport


def test_a_new_version_with_other_inputs_is_asked_about_before_a_mistake_is_reported():
    model, _ = scripted(versions=("DT_FLOAT", "DT_INT32"))
    assert model.signatures()["decode"].inputs["latent"].dtype == "float32"
    assert model.predict("decode", latent=np.int32([[1]]))["image"].dtype == np.int32
    with pytest.raises(clients.BadRequest, match=re.escape("input 'latent' is float32[1, 1]; give int32[?, 1]")):
        model.predict("decode", latent=np.float32([[1]]))


def test_rows_come_back_in_order_and_an_error_ends_a_call():
    rows, done = np.arange(10, dtype=np.float32)[:, np.newaxis], []
    model, _ = scripted(batch_rows=3, in_flight=2, progress=done.append)
    np.testing.assert_array_equal(model.decode(rows), rows + 1)
    assert sorted(done) == done and done[-1] == 10
    error = clients.BadRequest("the third")
    model, transport = scripted(None, None, error, batch_rows=1, in_flight=2, seconds=0.02)
    with pytest.raises(clients.BadRequest, match="nowhere, model 'model', signature 'decode': the third"):
        model.decode(np.zeros([1000, 1], np.float32))
    assert len(transport.asked) < 100
    with pytest.raises(ValueError, match="no rows"):
        model.decode(rows[:0])


def test_the_time_of_a_call_is_for_all_its_requests():
    model, transport = scripted(batch_rows=1, in_flight=1, seconds=0.1, timeout=60.0, total_timeout=0.25)
    with pytest.raises(clients.DeadlineExceeded, match="the 0.25 s for the whole call are over"):
        model.decode(np.zeros([10, 1], np.float32))
    assert len(transport.asked) == 3 and transport.asked[0] <= 0.25


class ScriptedService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Ends calls with the given codes, then answers; or never answers."""

    def __init__(self, *codes, seconds=0.0):
        self.codes, self.seconds, self.calls = list(codes), seconds, 0
        self.ended = threading.Event()

    def Predict(self, request, context):  # noqa: N802
        self.calls += 1
        context.add_callback(self.ended.set)
        time.sleep(self.seconds)
        if self.codes:
            context.abort(self.codes.pop(0), "scripted")
        answer = predict_pb2.PredictResponse()
        answer.outputs["x"].CopyFrom(request.inputs["x"])
        return answer


@contextlib.contextmanager
def grpc_model(service, seconds=20.0):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with ServedModel(f"127.0.0.1:{port}", "any", timeout=seconds) as model:
        spec = clients.SignatureSpec({"x": TensorSpec("float32", None)}, {})
        model._known = clients.ModelMetadata(1, {"any": spec})
        yield model
    server.stop(None)


def test_only_grpcs_unavailable_is_tried_again_also_of_large_requests(quick_retries):
    large = np.ones(400_000, np.float32)  # gRPC's own retries would not send as much again
    for codes, kind, calls in (
        ([grpc.StatusCode.UNAVAILABLE] * 4, None, 5),
        ([grpc.StatusCode.UNAVAILABLE] * 9, clients.ServerNotReady, 5),
        ([grpc.StatusCode.INVALID_ARGUMENT], clients.BadRequest, 1),
        ([grpc.StatusCode.INTERNAL], clients.ServerFailed, 1),
        ([grpc.StatusCode.ABORTED], clients.ServerFailed, 1),
    ):
        service = ScriptedService(*codes)
        expected = pytest.raises(kind, match=f"scripted \\[{codes[0].name}\\]") if kind else contextlib.nullcontext()
        with grpc_model(service) as model, expected:
            assert model.predict("any", x=large)["x"].shape == large.shape
        assert service.calls == calls


def test_a_deadline_is_kept_and_the_server_sees_it():
    service = ScriptedService(seconds=1.5)
    with grpc_model(service, seconds=0.1) as model:
        began = time.monotonic()
        with pytest.raises(clients.DeadlineExceeded, match="allow more time"):
            model.predict("any", x=np.ones(1, np.float32))
        assert time.monotonic() - began < 1.0 and service.ended.wait(1)


def test_a_served_model_gives_the_series_of_the_seed(client, run, monkeypatch):
    latent = run("encode", image=IMAGES, seed=SEEDS)["latent"]
    inputs = {"sample": {"seed": SEEDS, "temperature": np.float32([1, 1, 0.6, 1])}, "decode": {"latent": latent}}
    for name in ("sample", "encode", "decode", "reconstruct", "score"):
        of_name = inputs.get(name, {"image": IMAGES, "seed": SEEDS})
        found, expected = client.predict(name, **of_name), run(name, **of_name)
        assert set(found) == set(expected)
        for output, array in expected.items():
            assert found[output].dtype == array.dtype
            np.testing.assert_allclose(found[output], array, rtol=0, atol=1e-5 * np.abs(array).max())
    asked, send = [], client.transport.predict
    monkeypatch.setattr(client.transport, "predict", lambda name, *rest: asked.append(name) or send(name, *rest))
    images = IMAGES[:3]
    monkeypatch.setattr(client, "_batch_rows", 2)
    seeds = np.int64([4, 4 + 2**32, 4 + 2 * 2**32])
    expected = run("sample", seed=seeds, temperature=np.float32([0.7] * 3))["image"]
    np.testing.assert_allclose(client.sample(3, seed=4, temperature=0.7), expected, atol=1e-5)
    assert asked == ["sample", "sample"]
    latents = client.encode(images, seed=4)
    np.testing.assert_allclose(latents, run("encode", image=images, seed=seeds)["latent"], atol=1e-4)
    again = client.reconstruct(pil_images(images), seed=4)
    np.testing.assert_allclose(again, client.decode(latents), atol=1e-5)
    pixels = client.decode(latents, as_pixels=True)
    assert pixels.dtype == np.uint8 and np.abs(pixels / 255 - again).max() <= 0.5 / 255 + 1e-5
    # Pixels travel as PNG files, which the model brings to its own bits, and which are far shorter than numbers.
    assert asked[-1] == "decode_png"
    scores = client.score(np.rint(images * 255).astype(np.uint8), seed=4)
    assert asked[-1] == "score_png"
    expected = run("score", image=images, seed=seeds)
    for name in ("nats", "bits_per_dim", "kl_per_group"):
        np.testing.assert_allclose(getattr(scores, name), expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_groups_are_kept_or_drawn_of_classes_and_refused_rows_are_named(rows_folder, protocol):
    with served("rows", rows_folder.parent) as servers, servers.client(protocol, "rows") as model:
        latents = np.arange(12, dtype=np.float32).reshape(3, 4) / 2
        images, found = model.compose(latents, keep=[1, 0], seed=1, temperature=[1.0, 0.5])
        np.testing.assert_array_equal(found[:, :2], latents[:, :2])
        np.testing.assert_array_equal(found[:, 2:], [[0, 0], [0.5, 0.5], [1, 1]])
        # No class was named.
        np.testing.assert_allclose(images, found.reshape(3, 2, 2, 1) / 10 - 0.01, atol=1e-6)
        pixels = model.compose(latents, keep=np.ones([3, 2]), labels=[0, 1, 1], as_pixels=True).images
        expected = latents / 10 + np.array([[0], [0.01], [0.01]])
        assert pixels.dtype == np.uint8 and np.abs(pixels - 255 * expected.reshape(3, 2, 2, 1)).max() < 0.51
        with pytest.raises(clients.BadRequest, match=re.escape("the model refuses rows [1]")):
            model.compose(latents, keep=0, labels=[0, 5, 1])
        with pytest.raises(ValueError, match="label of shape"):
            model.compose(latents, keep=0, labels=[0, 1])
        with pytest.raises(clients.BadRequest, match="no input 'label'"):
            model.sample(3, labels=1)


def test_rows_that_are_not_numbers_are_refused():
    clients.check_rows({"latent": np.zeros([0, 3], np.float32), "size": np.arange(3)})
    with pytest.raises(ValueError, match=re.escape("rows [0, 2]")):
        clients.check_rows({"nats": np.float32([np.nan, 1.0, np.nan])})


def test_pictures_are_converted_to_the_models_channels_and_other_sizes_refused():
    gray = Image.fromarray(np.full([8, 8], 51, np.uint8))
    np.testing.assert_array_equal(image_arrays([gray], (8, 8, 3)), np.full([1, 8, 8, 3], 51, np.uint8))
    fine = Image.fromarray(np.full([8, 8], 40_000, np.uint16))
    np.testing.assert_array_equal(image_arrays([fine], (8, 8, 1)), np.full([1, 8, 8, 1], 156, np.uint8))
    for images, shape, message in (
        ([gray], (28, 28, 1), "picture 0 is 8x8x1, the model takes 28x28x1"),
        (np.ones([1, 8, 8, 3], np.int64), (8, 8, 3), "give uint8 in 0 to 255 or float"),
        ([Image.fromarray(np.ones([8, 8], np.float32))], (8, 8, 1), "mode 'F'"),
        ([gray], (8, 8, 5), "5 channels: it takes arrays alone"),
    ):
        with pytest.raises(ValueError, match=message):
            image_arrays(images, shape)


def test_rest_starts_without_tensorflow_and_without_the_models_code():
    program = (
        "import sys\nfrom export import client\nfrom nvae_tf.serving.client import ServedModel\n"
        "ServedModel('http://localhost:1', 'x')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras')])"
    )
    assert output_of(["-c", program]) == "[]\n"


@contextlib.contextmanager
def web_server(*answers, piece_seconds=0.0):
    """Gives one answer (code and text) after another, the last one forever; without a code the connection ends."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            code, text = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.close_connection = True
            if code is not None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
            with contextlib.suppress(ConnectionError):
                for letter in text if piece_seconds else [text]:
                    time.sleep(piece_seconds)
                    self.wfile.write(letter.encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


STATUS = json.dumps({"model_version_status": [{"version": "4", "state": "END", "status": {"error_code": "UNKNOWN"}}]})


def test_errors_of_rest_are_reported_and_only_503_is_tried_again(quick_retries):
    for code, text, kind, message, calls in (
        (400, '{"error": "no such thing"}', clients.BadRequest, "no such thing [INVALID_ARGUMENT]; correct", 1),
        (429, '{"error": "too long"}', clients.TooLarge, "send fewer rows", 1),
        (503, '{"error": "loading"}', clients.ServerNotReady, "loading [UNAVAILABLE]", 5),
        (404, "<html>Not here</html>", clients.ServerFailed, "is this its REST port?", 1),
        (200, "<html>Hello</html>", clients.ServerFailed, "is this its REST port?", 1),
        (200, "{}", clients.ServerFailed, "no status of a model", 1),
    ):
        with web_server((code, text)) as (server, asked):
            with ServedModel(server, "digits") as model, pytest.raises(kind) as raised:
                model.model_status()
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert len(asked) == calls
    with web_server((503, "{}"), (200, STATUS)) as (server, asked), ServedModel(server, "digits") as model:
        assert model.model_status() == [(4, "END", "UNKNOWN: ")] and len(asked) == 2


@pytest.mark.parametrize("part", ["", "HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{"])
def test_a_connection_that_breaks_is_tried_again_and_reported(part, quick_retries):
    with web_server((None, part)) as (server, asked), ServedModel(server, "digits") as model:
        with pytest.raises(clients.ServerNotReady, match="broke before there was an answer"):
            model.model_status()
    assert len(asked) == 5


def test_a_dead_server_is_reported_by_both_protocols(quick_retries):
    for server in (f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"):
        with ServedModel(server, "x") as model, pytest.raises(clients.ServerNotReady, match="is it running") as raised:
            model.metadata()
        assert str(raised.value).startswith(f"{server}, model 'x': ")


def test_an_answer_that_trickles_in_ends_at_the_deadline():
    with web_server((200, STATUS), piece_seconds=0.05) as (server, asked):
        began = time.monotonic()
        with ServedModel(server, "digits", timeout=0.2) as model:
            with pytest.raises(clients.DeadlineExceeded, match="no answer within 0.2 s"):
                model.model_status()
        assert time.monotonic() - began < 1.0 and len(asked) == 1


def test_names_are_quoted_and_a_url_is_taken_as_it_is():
    url = "https://host/serving/v1/models/a%20b/labels/x%2Fy"
    assert RestTransport("https://host/serving/", "a b", None, "x/y").url == url


def test_json_that_is_no_array_is_refused():
    for value, dtype, message in (
        ([[1, 2], [3]], "int32", "different lengths"),
        ([1.5], "int64", "a float where int64 is wanted"),
        ([True, 1], "float32", "a bool where float32 is wanted"),
        ([2**70], "int32", "a number that int32 can't hold"),
        (["x" * 2**15] + [1] * 2**14, "float32", "a str where float32 is wanted"),
        (functools.reduce(lambda nested, _: [nested], range(40), "x"), "string", "nested too deep"),
        ([{"b64": "?"}], "string", "no base64"),
        ([1], "string", "a int where a string"),
    ):
        with pytest.raises(ValueError, match=message):
            array_from_json(value, dtype)


@pytest.mark.slow
def test_the_scripts_of_the_docs_run_without_this_package(local, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    scripts = [block for block in blocks if "nvae_tf" not in block]
    assert len(scripts) == 2
    for script in scripts:
        assert len(script.splitlines()) <= 20
        script = script.replace('"digits"', '"tiny"').replace("models/digits:", "models/tiny:")
        script = script.replace("localhost:8500", local.grpc).replace("localhost:8501", local.rest)
        (tmp_path / "script.py").write_text(script)
        output_of(["-I", "script.py"], anew=True, cwd=tmp_path)
    for name in ("rest.png", "grpc.png"):
        assert np.asarray(Image.open(tmp_path / name)).shape == (8, 8, 3)
