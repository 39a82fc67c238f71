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

from nvae_tf.serving import client as clients
from nvae_tf.serving.grpc_client import ServingClient
from nvae_tf.serving.served_model import ServedModel, image_arrays, pil_images, predict_batches
from tests.command_fixtures import output_of
from tests.serving.model_servers import IMAGES, QUICK, SEEDS


def test_strings_keep_every_byte(servers, protocol):
    given = [b"\x89PNG\r\n\x1a\n\x00", b"", "wört".encode()]
    with servers.client(protocol, "texts") as client:
        found = client.predict("echo_png", image_bytes=given)
    assert found["image_bytes"].tolist() == [text + b"\x00\xff\x00" for text in given]
    assert found["size"].tolist() == [len(text) for text in given] and found["size"].dtype == np.int32
    assert found["word"].tolist() == ["wörd".encode()] * 3


def test_metadata_and_status(client, servers, protocol):
    metadata = client.metadata()
    assert metadata.name == "tiny" and metadata.version == 3
    sample = metadata.signatures["sample"]
    seed, temperature = (clients.TensorSpec(dtype, (None,)) for dtype in ("int64", "float32"))
    assert sample.inputs == {"seed": seed, "temperature": temperature}
    assert sample.outputs["image"] == clients.TensorSpec("float32", (None, 8, 8, 3))
    assert client.model_status() == [(3, "AVAILABLE", "")]
    for chosen in ({"version": 3}, {"label": "stable"}):
        with servers.client(protocol, **chosen) as other:
            assert other.predict("sample", seed=[1], temperature=[1.0])["image"].shape == (1, 8, 8, 3)


def test_an_unknown_model_or_version_is_reported(servers, protocol):
    for arguments, named in [({"model": "digits"}, "model 'digits'"), ({"version": 9}, "model 'tiny' version 9")]:
        with servers.client(protocol, **arguments) as client:
            with pytest.raises(clients.ModelNotFound) as raised:
                client.predict("sample", seed=[1], temperature=[1.0])
        assert named in str(raised.value) and getattr(servers, protocol) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_inputs_that_do_not_fit_are_reported_and_not_sent(client, monkeypatch):
    for signature, inputs, message in (
        ("smaple", {}, "no such signature; did you mean 'sample'?"),
        ("sample", {"sead": SEEDS}, "no input 'sead', did you mean 'seed'?"),
        ("sample", {"seed": SEEDS}, "input 'temperature' is missing; give float32[?]"),
        ("sample", {"seed": SEEDS, "temperature": np.ones(4)}, "is float64[4]; give float32[?], e.g. array.astype"),
        ("sample", {"seed": [1, 2], "temperature": [1.0]}, "different numbers of rows: seed 2, temperature 1"),
        ("encode", {"image": IMAGES[:, :7], "seed": SEEDS}, "is float32[4, 7, 8, 3]; give float32[?, 8, 8, 3]"),
        ("encode", {"image": [[1.0], [1.0, 2.0]], "seed": SEEDS}, "input 'image' is no array"),
    ):
        monkeypatch.setattr(client, "_predict", lambda *arguments: pytest.fail("was sent"))
        with pytest.raises(clients.BadRequest, match=re.escape(message)) as raised:
            client.predict(signature, **inputs)
        assert "\n" not in str(raised.value)


def metadata_of(version, dtype):
    signature = clients.SignatureSpec({"x": clients.TensorSpec(dtype, (None,))}, {})
    return clients.ModelMetadata("model", version, {"sum": signature})


class Scripted(clients.ModelClient):
    """Raises the given errors one after another, then answers with the sum of the rows."""

    def __init__(self, *errors, patience=QUICK):
        super().__init__("nowhere", "model", patience=patience)
        self.errors, self.times = list(errors), []
        self._known = metadata_of(1, "float32")

    def close(self):
        pass

    def _predict(self, job, signature, arrays, outputs, seconds):
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return {"y": arrays["x"] + 1}

    _metadata = _status = None


def test_a_server_that_is_not_ready_is_asked_again_with_growing_random_waits():
    patience = clients.Patience(tries=4, first_wait=0.04)
    client = Scripted(*[clients.ServerNotReady("loading")] * 3, patience=patience)
    assert client.predict("sum", x=[1.0])["y"] == [2.0]
    waits = np.diff(client.times)
    assert len(waits) == 3
    for wait, longest in zip(waits, [0.04, 0.08, 0.16], strict=True):
        assert longest / 2 <= wait < longest + 0.3
    assert len({client.patience.wait_after(2) for _ in range(5)}) == 5


@pytest.mark.parametrize("limits", [{"tries": 3}, {"tries": 99, "total": 0.2}])
def test_a_server_that_is_not_ready_is_not_asked_for_ever(limits):
    client = Scripted(*[clients.ServerNotReady("loading")] * 99, patience=clients.Patience(first_wait=0.05, **limits))
    with pytest.raises(clients.ServerNotReady, match=r"loading \(tried \d+ times"):
        client.predict("sum", x=[1.0])
    assert len(client.times) == 3 if limits["tries"] == 3 else 1 < len(client.times) < 10


def test_a_new_version_with_other_inputs_is_asked_about_before_a_mistake_is_reported():
    class Renewed(Scripted):
        def _metadata(self, job, seconds):
            return metadata_of(2, "int32")

    client = Renewed()
    assert client.predict("sum", x=np.int32([1]))["y"].dtype == np.int32
    with pytest.raises(clients.BadRequest, match=re.escape("input 'x' is float32[1]; give int32[?]")):
        client.predict("sum", x=np.float32([1]))


class ScriptedService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Ends calls with the given codes, then answers; or never answers."""

    def __init__(self, *codes, seconds=0.0):
        self.codes, self.seconds, self.calls = list(codes), seconds, 0
        self.canceled = threading.Event()

    def Predict(self, request, context):  # noqa: N802
        self.calls += 1
        context.add_callback(self.canceled.set)
        time.sleep(self.seconds)
        if self.codes:
            context.abort(self.codes.pop(0), "scripted")
        answer = predict_pb2.PredictResponse()
        answer.outputs["x"].CopyFrom(request.inputs["x"])
        return answer

    def GetModelMetadata(self, request, context):  # noqa: N802
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no metadata here")


@contextlib.contextmanager
def scripted_client(service, patience=QUICK):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with ServingClient(f"127.0.0.1:{port}", "any", patience=patience) as client:
        yield client
    server.stop(None)


def test_only_grpcs_unavailable_is_tried_again_without_metadata_too():
    for code, kind, calls in (
        (grpc.StatusCode.UNAVAILABLE, None, 2),
        (grpc.StatusCode.INVALID_ARGUMENT, clients.BadRequest, 1),
        (grpc.StatusCode.INTERNAL, clients.ServerFailed, 1),
        (grpc.StatusCode.ABORTED, clients.ServerFailed, 1),
    ):
        service = ScriptedService(code)
        expected = pytest.raises(kind, match=f"scripted \\[{code.name}\\]") if kind else contextlib.nullcontext()
        with scripted_client(service) as client, expected:
            assert client.predict("any", x=[1.0, 2.0])["x"].tolist() == [1.0, 2.0]
        assert service.calls == calls


def test_a_deadline_is_kept_and_the_server_sees_it():
    service = ScriptedService(seconds=1.5)
    with scripted_client(service, clients.Patience(request=0.1)) as client:
        began = time.monotonic()
        with pytest.raises(clients.DeadlineExceeded, match="allow more time"):
            client.predict("any", x=[1.0])
        assert time.monotonic() - began < 1.0 and service.canceled.wait(1)


def test_an_error_ends_a_job_and_is_raised_itself():
    asked = []

    class Failing(Scripted):
        def _predict(self, job, signature, arrays, outputs, seconds):
            asked.append(arrays["x"][0])
            if arrays["x"][0] == 2:
                raise clients.BadRequest("the third")
            with job.in_flight(lambda: None):
                assert job._given_up.wait(5)
            job.seconds_for_a_request("given up")

    batches = ({"x": np.float32([number])} for number in range(1000))
    with pytest.raises(clients.BadRequest, match="the third"):
        list(predict_batches(Failing(), "sum", batches, in_flight=3))
    assert len(asked) <= 7


def test_a_job_that_is_left_cancels_what_is_in_flight():
    service = ScriptedService(seconds=0.6)
    batches = ({"x": np.float32([number])} for number in range(1000))
    with scripted_client(service) as client:
        results = predict_batches(client, "any", batches, in_flight=1)
        next(results)
        while service.calls < 2:
            time.sleep(0.005)
        service.canceled.clear()
        results.close()
        assert service.canceled.wait(0.4)  # the call itself takes longer
    assert service.calls == 2


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
    asked, send = [], client.predict_in
    monkeypatch.setattr(client, "predict_in", lambda job, name, *rest: asked.append(name) or send(job, name, *rest))
    images, done = IMAGES[:3], []
    served = ServedModel(client, batch_rows=2, in_flight=2, progress=done.append)
    seeds = np.int64([4, 4 + 2**32, 4 + 2 * 2**32])
    expected = run("sample", seed=seeds, temperature=np.float32([0.7] * 3))["image"]
    np.testing.assert_allclose(served.sample(3, seed=4, temperature=0.7), expected, atol=1e-5)
    assert done == [2, 3]
    latents = served.encode(images, seed=4)
    np.testing.assert_allclose(latents, run("encode", image=images, seed=seeds)["latent"], atol=1e-4)
    again = served.reconstruct(pil_images(images), seed=4)
    np.testing.assert_allclose(again, served.decode(latents), atol=1e-5)
    upper = served.decode_upper_groups(latents, 2, seed=1)
    np.testing.assert_allclose(upper, again, atol=1e-5)
    drawn = served.decode_upper_groups(latents, 0, seed=4, temperature=0.7)
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    pixels = served.decode(latents, as_pixels=True)
    assert pixels.dtype == np.uint8 and np.abs(pixels / 255 - again).max() <= 0.5 / 255 + 1e-5
    # Pixels travel as PNG files, which the model brings to its own bits; as text, files are shorter than numbers.
    assert asked[-1] == ("decode_png" if client.numbers_are_text else "decode")
    scores = served.score(np.rint(images * 255).astype(np.uint8), seed=4)
    assert asked[-1] == "score_png"
    expected = run("score", image=images, seed=seeds)
    for name in ("nats", "bits_per_dim", "kl_per_group"):
        np.testing.assert_allclose(getattr(scores, name), expected[name], rtol=1e-4, atol=1e-4)


def test_pictures_are_converted_to_the_models_channels_and_other_sizes_refused():
    gray = Image.fromarray(np.full([8, 8], 51, np.uint8))
    np.testing.assert_array_equal(image_arrays([gray], (8, 8, 3)), np.full([1, 8, 8, 3], 51, np.uint8))
    fine = Image.fromarray(np.full([8, 8], 40_000, np.uint16))
    np.testing.assert_array_equal(image_arrays([fine], (8, 8, 1)), np.full([1, 8, 8, 1], 156, np.uint8))
    for images, shape, message in (
        ([gray], (28, 28, 1), "picture 0 is 8x8x1, the model takes 28x28x1"),
        (np.ones([1, 8, 8, 3], np.int64), (8, 8, 3), "give uint8 in 0 to 255 or float"),
        ([Image.fromarray(np.ones([8, 8], np.float32))], (8, 8, 1), "mode 'F'"),
    ):
        with pytest.raises(ValueError, match=message):
            image_arrays(images, shape)


def test_the_rest_client_starts_without_tensorflow_and_without_the_models_code():
    program = (
        "import sys\nfrom export import client\nfrom nvae_tf.serving import client, served_model\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras')])"
    )
    assert output_of(["-c", program]) == "[]\n"


@contextlib.contextmanager
def web_server(*answers, piece_seconds=0.0):
    """Gives one answer (code and text) after another, the last one for ever; without a code the connection ends."""
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
        yield f"127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def test_other_errors_are_reported_at_once():
    for code, text, kind, message in (
        (400, '{"error": "no such thing"}', clients.BadRequest, "no such thing [HTTP 400]"),
        (429, '{"error": "too long"}', clients.TooLarge, "send fewer rows"),
        (404, "<html>Not here</html>", clients.ServerFailed, "is this its REST port?"),
        (200, "<html>Hello</html>", clients.ServerFailed, "is this its REST port?"),
        (200, "{}", clients.ServerFailed, "no status of a model"),
    ):
        with web_server((code, text)) as (server, asked):
            with clients.RestClient(server, "digits", patience=QUICK) as client, pytest.raises(kind) as raised:
                client.model_status()
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert len(asked) == 1


@pytest.mark.parametrize("part", ["", "HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{"])
def test_a_connection_that_breaks_is_tried_again_and_reported(part):
    with web_server((None, part)) as (server, asked), clients.RestClient(server, "digits", patience=QUICK) as client:
        with pytest.raises(clients.ServerNotReady, match="broke before there was an answer; has the server ended"):
            client.model_status()
    assert len(asked) == 3


def test_an_answer_that_trickles_in_ends_at_the_deadline():
    status = {"version": "4", "state": "AVAILABLE", "status": {"error_code": "OK"}}
    text = json.dumps({"model_version_status": [status]})
    with web_server((200, text), piece_seconds=0.05) as (server, asked):
        began = time.monotonic()
        with clients.RestClient(server, "digits", patience=clients.Patience(request=0.2)) as client:
            with pytest.raises(clients.DeadlineExceeded, match="no answer within 0.2 s"):
                client.model_status()
        assert time.monotonic() - began < 1.0 and len(asked) == 1


def test_names_are_quoted_and_a_url_is_taken_as_it_is():
    url = "https://host/serving/v1/models/a%20b/labels/x%2Fy"
    assert clients.RestClient("https://host/serving/", "a b", label="x/y")._url == url
    with pytest.raises(ValueError, match="http:// is for the REST client"):
        ServingClient("http://host:1", "digits")


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
            clients.array_of_json(value, dtype)
