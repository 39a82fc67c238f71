import contextlib
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from export.client import class_numbers
from nvae_tf.generation.image_grid import pil_images
from nvae_tf.serving import client as clients
from nvae_tf.serving.client import ServedModel, ServingError, TensorSpec, image_arrays
from tests import ROOT, refuses
from tests.command_fixtures import output_of
from tests.serving.model_servers import IMAGES, PROTOCOLS, SEEDS, free_port, web_server


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(clients, "FIRST_WAIT", 0.01)


@contextlib.contextmanager
def refused(code, message="model '"):
    """A ServingError of one line, with a code."""
    with pytest.raises(ServingError, match=re.escape(message)) as raised:
        yield raised
    assert raised.value.code == code and "\n" not in str(raised.value)


def test_strings_keep_every_byte(servers, protocol):
    given = [b"\x89PNG\r\n\x1a\n\x00", b"", "wört"]
    with servers.client(protocol, "texts") as client:
        answer = client.predict("echo_png", image_bytes=given)
    texts = [*given[:2], "wört".encode()]
    assert answer["image_bytes"].tolist() == [text + b"\x00\xff\x00" for text in texts]
    assert answer["size"].tolist() == [len(text) for text in texts] and answer["size"].dtype == np.int32
    assert answer["word"].tolist() == ["wörd".encode()] * 3


def test_metadata_status_and_what_is_not_served(client, servers, protocol):
    version, signatures = client.metadata()
    assert version == 3
    sample = signatures["sample"]
    assert sample.inputs == {"seed": TensorSpec("int64", (None,)), "temperature": TensorSpec("float32", (None,))}
    assert sample.outputs["image"] == TensorSpec("float32", (None, 8, 8, 3))
    assert client.model_status() == [(3, "AVAILABLE", "")]
    with servers.client(protocol, version=3) as other:
        assert other.predict("sample", seed=[1], temperature=[1.0])["image"].shape == (1, 8, 8, 3)
    for arguments, named in [({"model": "digits"}, "model 'digits'"), ({"version": 9}, "model 'tiny' version 9")]:
        message = f"{servers.url(protocol)}, {named}, "
        with servers.client(protocol, **arguments) as other, refused("NOT_FOUND", message):
            other.predict("sample", seed=[1], temperature=[1.0])


class Scripted:
    """In place of a connection: raises the given errors one after another, then answers with the rows plus 1.

    In place of an error may stand None, or seconds after which it answers. With classes the rows plus 2 and the class,
    which must be 0 or 1.
    """

    def __init__(self, *errors, seconds=0.0):
        self.errors, self.seconds, self.asked, self.has_classes = list(errors), seconds, [], True

    def predict(self, signature, arrays, spec, seconds):
        self.asked.append(seconds)
        time.sleep(self.seconds)
        event = self.errors.pop(0) if self.errors else None
        if isinstance(event, Exception):
            raise event
        time.sleep(event or 0.0)
        label = arrays.get("label", np.full(len(arrays["latent"]), -1))
        return {"image": arrays["latent"] + 2 + label[:, np.newaxis], "valid": label < 2}

    def describe(self, what, seconds):
        tensor = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "1"}]}}
        label = {"dtype": "DT_INT32", "tensor_shape": {"dim": [{"size": "-1"}]}}
        inputs = {"latent": tensor} | ({"label": label} if self.has_classes else {})
        definitions = {"decode": {"inputs": inputs, "outputs": {"image": tensor}}}
        return {"model_spec": {"version": "1"}, "metadata": {"signature_def": {"signature_def": definitions}}}


def scripted(*errors, seconds=0.0, **arguments):
    model = ServedModel("http://nowhere", "model", **arguments)
    model.transport = Scripted(*errors, seconds=seconds)
    return model, model.transport


def test_rows_come_back_in_order_and_an_error_or_the_time_of_all_requests_ends_a_call():
    rows, done = np.arange(10, dtype=np.float32)[:, np.newaxis], []
    model, _ = scripted(batch_rows=3, in_flight=2, progress=done.append)
    np.testing.assert_array_equal(model.decode(rows), rows + 1)
    assert sorted(done) == done and done[-1] == 10
    error = ServingError("INVALID_ARGUMENT", "the third")
    model, transport = scripted(None, None, error, batch_rows=1, in_flight=2, seconds=0.02)
    with refused("INVALID_ARGUMENT", "nowhere, model 'model', signature 'decode': the third"):
        model.decode(np.zeros([1000, 1], np.float32))
    assert len(transport.asked) < 100
    refuses("no rows", model.decode, rows[:0])
    # While an earlier request waits for its answer.
    events = 0.5, ServingError("INTERNAL", "the second")
    model, transport = scripted(*events, batch_rows=1, in_flight=2, seconds=0.01)
    with refused("INTERNAL", "the second"):
        model.decode(np.zeros([100, 1], np.float32))
    assert len(transport.asked) < 10
    model, transport = scripted(batch_rows=1, in_flight=1, seconds=0.1, timeout=60.0, total_timeout=0.25)
    with refused("DEADLINE_EXCEEDED", "0.25 s for the whole call are over"):
        model.decode(np.zeros([10, 1], np.float32))
    assert len(transport.asked) == 3 and transport.asked[0] <= 0.25


def test_signatures_are_asked_for_again_after_an_error():
    model, transport = scripted(None, ServingError("INVALID_ARGUMENT", "label is missing"))
    transport.has_classes, row = False, np.zeros([1, 1], np.float32)
    assert model.decode(row) == 1.0
    transport.has_classes = True  # the server has loaded another version
    with refused("INVALID_ARGUMENT", "label is missing"):
        model.decode(row)
    assert model.decode(row, labels=1) == 3.0


def test_only_what_is_unavailable_is_asked_again(quick_retries):
    for code, failures, calls in (("UNAVAILABLE", 4, 5), ("UNAVAILABLE", 9, 5), ("INTERNAL", 9, 1)):
        model, transport = scripted(*[ServingError(code, "scripted")] * failures)
        with refused(code, f"scripted [{code}]") if calls <= failures else contextlib.nullcontext():
            assert model.predict("decode", latent=[[1.0]])["image"] == 2.0
        assert len(transport.asked) == calls


def test_a_served_model_gives_the_series_of_the_seed(client, run, monkeypatch):
    asked, send = [], client.transport.predict
    monkeypatch.setattr(client.transport, "predict", lambda name, *rest: asked.append(name) or send(name, *rest))
    monkeypatch.setattr(client, "_batch_rows", 2)
    images, seeds = IMAGES[:3], np.int64([4, 4 + 2**32, 4 + 2 * 2**32])
    expected = run("sample", seed=seeds, temperature=np.float32([0.7] * 3))
    answer = client.predict("sample", seed=seeds, temperature=[0.7] * 3)
    assert {name: array.dtype for name, array in answer.items()} == {name: a.dtype for name, a in expected.items()}
    np.testing.assert_allclose(answer["image"], expected["image"], atol=1e-5)
    np.testing.assert_allclose(client.sample(3, seed=4, temperature=0.7), expected["image"], atol=1e-5)
    assert asked == ["sample"] * 3
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


def test_groups_are_kept_or_drawn(client, run):
    inputs = {"latent": run("encode", image=IMAGES, seed=SEEDS)["latent"], "keep": np.int32([[1, 0]] * 4)}
    inputs |= {"seed": 1 + np.arange(4) * 2**32, "temperature": np.float32([[1.0, 0.5]] * 4)}
    expected = run("compose", **inputs)
    pixels, latents = client.compose(inputs["latent"], [1, 0], seed=1, temperature=[1.0, 0.5], as_pixels=True)
    np.testing.assert_allclose(latents, expected["latent"], atol=1e-5)
    assert pixels.dtype == np.uint8 and np.abs(pixels - 255 * expected["image"]).max() < 0.51
    with refused("INVALID_ARGUMENT", "no input 'label'"):
        client.sample(3, labels=1)


def test_no_class_one_for_all_or_one_each_and_refused_rows_are_named():
    model, _ = scripted(batch_rows=2)
    rows = np.zeros([3, 1], np.float32)
    for labels, decoded in ((None, [1, 1, 1]), (1, [3, 3, 3]), ([0, 1, 1], [2, 3, 3])):
        assert model.decode(rows, labels)[:, 0].tolist() == decoded
    with refused("INVALID_ARGUMENT", "the model refuses rows [2]"):
        model.decode(rows, [0, 1, 5])


def test_pictures_are_converted_to_the_models_channels_and_other_sizes_refused():
    gray = Image.fromarray(np.full([8, 8], 51, np.uint8))
    np.testing.assert_array_equal(image_arrays([gray], (8, 8, 3)), np.full([1, 8, 8, 3], 51, np.uint8))
    fine = Image.fromarray(np.full([8, 8], 40_000, np.uint16))
    np.testing.assert_array_equal(image_arrays([fine], (8, 8, 1)), np.full([1, 8, 8, 1], 156, np.uint8))
    for image, shape, message in (
        (gray, (28, 28, 1), "picture 0 is 8x8x1, the model takes 28x28x1"),
        (Image.fromarray(np.ones([8, 8], np.float32)), (8, 8, 1), "mode 'F'"),
    ):
        refuses(message, image_arrays, [image], shape)
    deep = np.ones([1, 8, 8, 1], np.uint16)
    refuses("images are uint16: divide by their largest level", image_arrays, deep, (8, 8, 1))


def test_rest_starts_without_tensorflow_and_quotes_names():
    program = (
        "import sys\nfrom export import client\nfrom nvae_tf.serving.client import ServedModel\n"
        "print(ServedModel('https://host/serving/', 'a b', label='x/y').transport.url)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras')])"
    )
    assert output_of(["-c", program]) == "https://host/serving/v1/models/a%20b/labels/x%2Fy\n[]\n"


STATUS = {"error_code": "UNKNOWN", "error_message": "damaged"}
FAILED = json.dumps({"model_version_status": [{"version": "4", "state": "END", "status": STATUS}]})
BROKEN = "HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{"


def test_errors_of_rest_are_reported(quick_retries):
    for status, text, code, message, calls in (
        (400, '{"error": "no such thing"}', "INVALID_ARGUMENT", "no such thing [INVALID_ARGUMENT]; correct", 1),
        (503, '{"error": "loading"}', "UNAVAILABLE", "loading [UNAVAILABLE]", 5),
        (404, "<html>Not here</html>", "HTTP 404", "is this its REST port?", 1),
        (200, "{}", "HTTP 200", "is this its REST port?", 1),
        (200, FAILED, None, "", 1),
        (None, BROKEN, "UNAVAILABLE", "no answer (", 5),
    ):
        asked = []
        with web_server(lambda path, asked=asked, answer=(status, text): asked.append(path) or answer) as port:
            with ServedModel(f"http://127.0.0.1:{port}", "digits") as model:
                if code is None:
                    assert model.model_status() == [(4, "END", "damaged")]
                else:
                    with refused(code, message):
                        model.model_status()
        assert len(asked) == calls


def test_a_dead_server_is_reported_by_both_protocols(quick_retries):
    for server in (f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"):
        with ServedModel(server, "x") as model, refused("UNAVAILABLE", f"{server}, model 'x', metadata: "):
            model.metadata()


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


@pytest.fixture
def ask(local, done):
    def run(name, *flags, protocol="grpc"):
        rest = ["--rest"] if protocol == "rest" else []
        where = [f"--server={getattr(local, protocol)}", "--model=tiny", *rest]
        return done("export.client", name, *where, *flags)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pictures_go_through_the_model_and_come_back(ask, run, tmp_path, protocol):
    pictures, latents = tmp_path / "new" / "pictures", tmp_path / "other" / "latents.npz"
    ask("sample", f"--output={pictures}/", "--count=3", "--seed=4", "--batch_rows=2", protocol=protocol)
    files = [pictures / f"sample_0000{number}.png" for number in range(3)]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    expected = run("sample", seed=4 + np.arange(3) * 2**32, temperature=np.ones(3, np.float32))["image"]
    assert np.abs(pixels - expected * 255).max() < 0.51

    ask("encode", f"--images={pictures.parent}", f"--output={latents}", protocol=protocol)
    given = {"image": (pixels / 255).astype(np.float32), "seed": 1 + np.arange(3) * 2**32}
    with np.load(latents) as written:
        np.testing.assert_allclose(written["latent"], run("encode", **given)["latent"], atol=1e-4)
        assert written["names"].tolist() == [f"pictures/{file.name}" for file in files]
    ask("decode", f"--latents={latents}", f"--output={tmp_path / 'decoded.png'}", protocol=protocol)
    ask("reconstruct", f"--images={pictures}", f"--output={tmp_path / 'again.png'}", protocol=protocol)
    decoded, again = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("decoded.png", "again.png"))
    assert decoded.shape == again.shape and np.abs(decoded - again).max() <= 1

    printed = ask("score", f"--images={pictures}", f"--output={tmp_path / 'scores.json'}", protocol=protocol)
    nats = run("score", **given)["nats"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    np.testing.assert_allclose([row["nats"] for row in scores], nats, rtol=1e-5)
    assert printed.count("\n") == 5 and f"{nats.mean():.3f}" in printed.splitlines()[-1]
    printed = ask("status", protocol=protocol)
    assert printed.startswith("version 3: AVAILABLE\nsignatures of version 3:\n")
    assert re.search(r"  sample +seed int64\[\?\], temperature float32\[\?\] -> image float32\[\?, 8, 8, 3\]", printed)


@pytest.mark.slow
def test_labels_are_numbers_or_names_of_classes(conditional_folder):
    assert class_numbers(["1", "-1"], None) == [1, -1]
    assert class_numbers(["eel", "cat", "1", "-1"], str(conditional_folder)) == [2, 0, 1, -1]
    for export, message in ((None, "with --export=DIR"), (str(conditional_folder), "'dg'.*did you mean 'dog'")):
        refuses(f"--labels = .*{message}", class_numbers, ["dg"], export)


def test_a_refused_job_writes_nothing(local, tmp_path, refused):
    Image.new("RGB", [9, 8]).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGBA", [8, 8]).save(tmp_path / "clear.png")
    encode = ["encode", f"--server={local.grpc}", f"--output={tmp_path / 'x.npz'}"]
    messages = {"wide.png": "wide.png is 8x9x3, the model takes 8x8x3", "text.png": "not a picture"}
    messages["clear.png"] = "clear.png: has an alpha channel, which the model does not take: give --export"
    for file, message in messages.items():
        assert message in refused("export.client", *encode, "--model=tiny", f"--images={tmp_path / file}")
    assert "model 'digits'" in refused("export.client", *encode, "--model=digits", f"--images={tmp_path / 'wide.png'}")
    assert sorted(file.name for file in tmp_path.iterdir()) == [*sorted(messages)]


def test_a_picture_with_an_alpha_channel_is_laid_on_what_the_export_says(ask, tmp_path):
    Image.new("RGBA", [8, 8], "#ff000000").save(tmp_path / "clear.png")
    Image.new("RGB", [8, 8], "white").save(tmp_path / "white.png")
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "config.json").write_text('{"data": {"alpha": "white"}}')
    flags = f"--export={tmp_path}", "--seed=1"
    clear, white = (ask("score", f"--images={tmp_path / name}.png", *flags) for name in ("clear", "white"))
    assert clear.splitlines()[-1] == white.splitlines()[-1]
