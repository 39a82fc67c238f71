"""What both clients do, over gRPC and over REST, with every server there is."""

import pathlib
import re
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from nvae_tf.serving.client import (
    BadRequest,
    DeadlineExceeded,
    ModelClient,
    ModelMetadata,
    ModelNotFound,
    Patience,
    ServerFailed,
    ServerNotReady,
    SignatureSpec,
    TensorSpec,
)
from nvae_tf.serving.grpc_client import ServingClient, array_of
from nvae_tf.serving.local_server import _tensor_in_fields
from nvae_tf.serving.served_model import (
    ServedModel,
    batches_of,
    image_arrays,
    pil_images,
    pixels_of,
    pixels_of_files,
    png_files,
    predict_batches,
    row_seeds,
)
from tests.serving.model_servers import IMAGES, QUICK, SEEDS, free_port

pytest_plugins = ("tests.serving.serving_fixtures",)
ROOT = pathlib.Path(__file__).resolve().parents[2]


def assert_same(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("signature", ["sample", "encode", "decode", "reconstruct", "score"])
def test_every_signature_gives_the_sessions_numbers(client, run, signature):
    latent = run("encode", image=IMAGES, seed=SEEDS)["latent"]
    inputs = {
        "sample": {"seed": SEEDS, "temperature": np.float32([1, 1, 0.6, 1])},
        "decode": {"latent": latent},
    }.get(signature, {"image": IMAGES, "seed": SEEDS})
    found, expected = client.predict(signature, **inputs), run(signature, **inputs)
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert_same(found[name], array)


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
    assert sample.inputs == {"seed": TensorSpec("int64", (None,)), "temperature": TensorSpec("float32", (None,))}
    assert sample.outputs["image"] == TensorSpec("float32", (None, 8, 8, 3))
    assert client.model_status() == [(3, "AVAILABLE", "")]
    for chosen in ({"version": 3}, {"label": "stable"}):
        with servers.client(protocol, **chosen) as other:
            assert other.predict("sample", seed=[1], temperature=[1.0])["image"].shape == (1, 8, 8, 3)


def test_an_unknown_model_or_version_is_told(servers, protocol):
    for arguments, named in [({"model": "digits"}, "model 'digits'"), ({"version": 9}, "model 'tiny' version 9")]:
        with servers.client(protocol, **arguments) as client:
            with pytest.raises(ModelNotFound) as told:
                client.predict("sample", seed=[1], temperature=[1.0])
        assert named in str(told.value) and getattr(servers, protocol) in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "signature, inputs, message",
    [
        ("smaple", {}, "no such signature; did you mean 'sample'?"),
        ("sample", {"sead": SEEDS}, "no input 'sead', did you mean 'seed'?"),
        ("sample", {"seed": SEEDS}, "input 'temperature' is missing; give float32[?]"),
        ("sample", {"seed": SEEDS, "temperature": np.ones(4)}, "is float64[4]; give float32[?], e.g. array.astype"),
        ("sample", {"seed": [1, 2], "temperature": [1.0]}, "different numbers of rows: seed 2, temperature 1"),
        ("encode", {"image": IMAGES[:, :7], "seed": SEEDS}, "is float32[4, 7, 8, 3]; give float32[?, 8, 8, 3]"),
        ("encode", {"image": [[1.0], [1.0, 2.0]], "seed": SEEDS}, "input 'image' is no array"),
    ],
)
def test_inputs_that_do_not_fit_are_told_and_not_sent(client, monkeypatch, signature, inputs, message):
    monkeypatch.setattr(client, "_predict", lambda *arguments: pytest.fail("was sent"))
    with pytest.raises(BadRequest, match=re.escape(message)) as told:
        client.predict(signature, **inputs)
    assert "\n" not in str(told.value)


def test_what_the_graph_refuses_is_a_bad_request(client):
    with pytest.raises(BadRequest, match="temperature: values must be finite and above 0") as told:
        client.predict("sample", seed=[1], temperature=[-1.0])
    assert "\n" not in str(told.value)


class Scripted(ModelClient):
    """Raises the given errors one after another, then answers with the sum of the rows."""

    def __init__(self, *errors, patience=QUICK):
        super().__init__("nowhere", "model", patience=patience)
        self.errors, self.times = list(errors), []
        self._known = ModelMetadata("model", 1, {"sum": SignatureSpec({"x": TensorSpec("float32", (None,))}, {})})

    def close(self):
        pass

    def _predict(self, job, signature, arrays, outputs, seconds):
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return {"y": arrays["x"] + 1}

    _metadata = _status = None


def test_a_server_that_is_not_ready_is_asked_again_with_growing_random_waits():
    client = Scripted(*[ServerNotReady("loading")] * 3, patience=Patience(tries=4, first_wait=0.04, growth=3.0))
    assert client.predict("sum", x=[1.0])["y"] == [2.0]
    waits = np.diff(client.times)
    assert len(waits) == 3
    for wait, longest in zip(waits, [0.04, 0.12, 0.36], strict=True):
        assert longest / 2 <= wait < longest + 0.3
    assert len({client.patience.wait_after(2) for _ in range(5)}) == 5


def test_it_is_not_asked_for_ever_and_other_errors_end_at_once():
    client = Scripted(*[ServerNotReady("loading")] * 9)
    with pytest.raises(ServerNotReady, match="loading \\(tried 3 times"):
        client.predict("sum", x=[1.0])
    assert len(client.times) == 3
    for kind in (BadRequest, ModelNotFound, DeadlineExceeded, ServerFailed):
        client = Scripted(kind("no"))
        with pytest.raises(kind):
            client.predict("sum", x=[1.0])
        assert len(client.times) == 1


def test_the_total_time_bounds_all_tries():
    client = Scripted(*[ServerNotReady("loading")] * 99, patience=Patience(total=0.2, tries=99, first_wait=0.05))
    began = time.monotonic()
    with pytest.raises(ServerNotReady):
        client.predict("sum", x=[1.0])
    assert time.monotonic() - began < 1.0


def test_a_new_version_with_other_inputs_is_asked_about_before_a_mistake_is_told():
    class Renewed(Scripted):
        def _metadata(self, job, seconds):
            return ModelMetadata("model", 2, {"sum": SignatureSpec({"x": TensorSpec("int32", (None,))}, {})})

    client = Renewed()
    assert client.predict("sum", x=np.int32([1]))["y"].dtype == np.int32
    with pytest.raises(BadRequest, match=re.escape("input 'x' is float32[1]; give int32[?]")):
        client.predict("sum", x=np.float32([1]))


class OfPictures(Scripted):
    """Answers like a model with signatures for files whose images are half as bright; notes what it is sent."""

    def __init__(self, numbers_are_text):
        super().__init__()
        self.numbers_are_text, self.sent = numbers_are_text, []
        image, seed = TensorSpec("float32", (None, 2, 2, 1)), TensorSpec("int64", (None,))
        pixels, files, latent = (
            image._replace(dtype="uint8"),
            TensorSpec("string", (None,)),
            TensorSpec("float32", None),
        )
        outputs = {"image": image, "image_uint8": pixels}
        signatures = {
            "decode": SignatureSpec({"latent": latent}, outputs),
            "decode_png": SignatureSpec({"latent": latent}, {"image_bytes": files}),
            "reconstruct": SignatureSpec({"image": image, "seed": seed}, outputs),
            "reconstruct_png": SignatureSpec({"image_bytes": files, "seed": seed}, {"image_bytes": files}),
        }
        self._known = ModelMetadata("model", 1, signatures)

    def _predict(self, job, signature, arrays, outputs, seconds):
        self.sent.append((signature, *outputs))
        first = arrays.get("image", arrays.get("latent"))
        pixels = (pixels_of_files(arrays["image_bytes"]) if first is None else pixels_of(first)) // 2
        return {"image_bytes": png_files(pixels), "image": pixels / np.float32(255), "image_uint8": pixels}


def test_pictures_travel_as_files_and_results_as_the_shortest_that_there_is():
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    floats = pixels / np.float32(255)
    for is_text, decoded in [(True, ("decode_png", "image_bytes")), (False, ("decode", "image_uint8"))]:
        client = OfPictures(is_text)
        served = ServedModel(client, batch_rows=4)
        np.testing.assert_array_equal(served.reconstruct(pil_images(pixels), as_pixels=True), pixels // 2)
        np.testing.assert_array_equal(served.decode(floats, as_pixels=True), pixels // 2)
        assert client.sent == [("reconstruct_png", "image_bytes")] * 2 + [decoded] * 2
        for images in (pixels, floats):  # floats are wanted, which files don't hold
            found = served.reconstruct(images)
            assert found.dtype == np.float32 and client.sent[-1] == ("reconstruct", "image")


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


def scripted_client(service, patience=QUICK, port=0):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, ServingClient(f"127.0.0.1:{port}", "any", patience=patience)


@pytest.mark.parametrize(
    "code, kind, calls",
    [
        (grpc.StatusCode.UNAVAILABLE, None, 2),
        (grpc.StatusCode.INVALID_ARGUMENT, BadRequest, 1),
        (grpc.StatusCode.INTERNAL, ServerFailed, 1),
        (grpc.StatusCode.ABORTED, ServerFailed, 1),
    ],
)
def test_only_grpcs_unavailable_is_tried_again_without_metadata_too(code, kind, calls):
    service = ScriptedService(code)
    server, client = scripted_client(service)
    with client:
        if kind:
            with pytest.raises(kind, match=f"scripted \\[{code.name}\\]"):
                client.predict("any", x=[1.0, 2.0])
        else:
            assert client.predict("any", x=[1.0, 2.0])["x"].tolist() == [1.0, 2.0]
    server.stop(None)
    assert service.calls == calls


def test_a_deadline_is_kept_and_the_server_sees_it():
    service = ScriptedService(seconds=1.5)
    server, client = scripted_client(service, Patience(request=0.1))
    began = time.monotonic()
    with client, pytest.raises(DeadlineExceeded, match="allow more time"):
        client.predict("any", x=[1.0])
    assert time.monotonic() - began < 1.0 and service.canceled.wait(1)
    server.stop(None)


def test_a_server_that_comes_up_late_is_found():
    port, servers = free_port(), []
    client = ServingClient(f"127.0.0.1:{port}", "any", patience=Patience(tries=20, first_wait=0.05, longest_wait=0.1))
    late = threading.Timer(0.4, lambda: servers.append(scripted_client(ScriptedService(), port=port)[0]))
    late.start()
    with client:
        assert client.predict("any", x=[3.0])["x"] == [3.0]
    late.join()
    servers[0].stop(None)


def test_many_batches_keep_their_order_and_tell_how_far_they_are(client, run):
    seeds, done = row_seeds(3, 9), []
    inputs = {"seed": seeds, "temperature": np.ones(9, np.float32)}
    parts = predict_batches(client, "sample", batches_of(inputs, 2), ["image"], in_flight=3, progress=done.append)
    found = np.concatenate([part["image"] for part in parts])
    np.testing.assert_allclose(found, run("sample", **inputs)["image"], atol=1e-5)
    assert done == [2, 4, 6, 8, 9]


def test_an_error_ends_a_job_and_is_told_itself():
    asked = []

    class Failing(Scripted):
        def _predict(self, job, signature, arrays, outputs, seconds):
            asked.append(arrays["x"][0])
            if arrays["x"][0] == 2:
                raise BadRequest("the third")
            with job.in_flight(lambda: None):
                assert job._given_up.wait(5)
            job.seconds_for_a_request("given up")

    batches = ({"x": np.float32([number])} for number in range(1000))
    with pytest.raises(BadRequest, match="the third"):
        list(predict_batches(Failing(), "sum", batches, in_flight=3))
    assert len(asked) <= 7


def test_a_job_that_is_left_cancels_what_is_in_flight():
    service = ScriptedService(seconds=0.6)
    server, client = scripted_client(service)
    batches = ({"x": np.float32([number])} for number in range(1000))
    with client:
        results = predict_batches(client, "any", batches, in_flight=1)
        next(results)
        while service.calls < 2:
            time.sleep(0.005)
        service.canceled.clear()
        results.close()
        assert service.canceled.wait(0.4)  # the call itself takes longer
    server.stop(None)
    assert service.calls == 2


def test_a_served_model_gives_the_series_of_the_seed(client, run):
    served, images = ServedModel(client, batch_rows=2, in_flight=2), IMAGES[:3]
    seeds = np.int64([4, 4 + 2**32, 4 + 2 * 2**32])
    expected = run("sample", seed=seeds, temperature=np.float32([0.7] * 3))["image"]
    np.testing.assert_allclose(served.sample(3, seed=4, temperature=0.7), expected, atol=1e-5)
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
    scores = served.score(np.rint(images * 255).astype(np.uint8), seed=4)
    np.testing.assert_allclose(scores.bits_per_dim, scores.nats / np.log(2) / (8 * 8 * 3), rtol=1e-5)
    assert scores.kl_per_group.shape == (3, 2)


def test_pictures_are_converted_to_the_models_channels_and_other_sizes_told():
    gray = Image.fromarray(np.full([8, 8], 51, np.uint8))
    np.testing.assert_array_equal(image_arrays([gray], (8, 8, 3)), np.full([1, 8, 8, 3], 51, np.uint8))
    with pytest.raises(ValueError, match="picture 0 is 8x8x1, the model takes 28x28x1"):
        image_arrays([gray], (28, 28, 1))
    with pytest.raises(ValueError, match="give uint8 in 0 to 255 or float"):
        image_arrays(np.ones([1, 8, 8, 3], np.int64), (8, 8, 3))
    fine = Image.fromarray(np.full([8, 8], 40_000, np.uint16))
    np.testing.assert_array_equal(image_arrays([fine], (8, 8, 1)), np.full([1, 8, 8, 1], 156, np.uint8))
    with pytest.raises(ValueError, match="mode 'F'"):
        image_arrays([Image.fromarray(np.ones([8, 8], np.float32))], (8, 8, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool", "string"])
def test_messages_are_tensorflows_own(dtype):
    import tensorflow as tf

    array = np.array([[0, 1, 2], [3, 200, 5]])
    array = np.array([[b"", b"\0", b"a\0"]], object) if dtype == "string" else array.astype(dtype)
    for message in (tf.make_tensor_proto(array), _tensor_in_fields(array)):
        np.testing.assert_array_equal(tf.make_ndarray(message), array)
        np.testing.assert_array_equal(array_of(message), array)
    repeated = _tensor_in_fields(array[0, :1])
    repeated.tensor_shape.dim[0].size = 4
    np.testing.assert_array_equal(array_of(repeated), np.repeat(array[0, :1], 4))


def test_a_message_that_claims_a_huge_shape_is_refused():
    import tensorflow as tf

    message = tf.make_tensor_proto(np.ones(1, np.float32))
    message.tensor_shape.dim[0].size = 10**12
    with pytest.raises(ValueError, match="is over"):
        array_of(message)


def output_of(program):
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_rest_client_starts_without_tensorflow_and_without_the_models_code():
    wanted = "[name for name in sys.modules if name == 'tensorflow' or name.split('.')[0] == 'keras']"
    imports = "import sys\nfrom export import client\nfrom nvae_tf.serving import client, served_model\n"
    assert output_of(f"{imports}print({wanted})") == "[]\n"
