import functools
import os
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nvae_tf.compression.coders import PixelCoder, Stack, bins_and_draws, rounded, stream
from nvae_tf.compression.container import packed, unpacked
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.models import lossless
from nvae_tf.models.lossless import Codec, compress, decompress, with_weights
from nvae_tf.serving import saved_model
from nvae_tf.serving.signatures import Signatures
from tests import refuses, slow_but
from tests.command_fixtures import output_of
from tests.tiny_model import images_of, shaken, tiny_model

ONE_SCALE = {"num_latent_scales": 1, "num_groups_per_scale": 2, "likelihood": "logistic_mixture"}
FRAME = {"image_height": 3, "image_width": 2, "padded_height": 4, "padded_width": 4}
KINDS = {
    "binary": {"image_channels": 3},
    "gray, with classes": ONE_SCALE | {"num_bits": 8, "num_mixtures": 3, "num_classes": 3},
    "color, in a frame": ONE_SCALE | FRAME | {"num_bits": 5, "num_mixtures": 2, "image_channels": 3},
}
# What decodes on another machine: instruction sets, kernels, threads.
MACHINES = [
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "TF_NUM_INTRAOP_THREADS": "1"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"TF_ENABLE_ONEDNN_OPTS": "0"},
]
ELSEWHERE = """
import pathlib, sys
import numpy as np
from nvae_tf.models.lossless import Codec, decompress
from nvae_tf.serving.saved_model import coding_model
decode = Codec.decode

def decode_twice(*given):
    levels = decode(*given)
    assert np.array_equal(levels, decode(*given, extra_rows=3))
    return levels

Codec.decode = decode_twice
for model, file, levels in (sys.argv[1:4], sys.argv[4:7]):
    data = pathlib.Path(file).read_bytes()
    assert np.array_equal(np.concatenate(list(decompress(coding_model(model), data))), np.load(levels))
"""


@functools.cache
def made(kind, count=12):
    """A model, images of it, their levels, their labels or None; not to be changed."""
    model = shaken(tiny_model(**KINDS[kind]))
    images = images_of(model.config, count)
    labels = np.arange(count, dtype=np.int32) % 3 if model.config.num_classes else None
    return model, images, np.rint(images * (2**model.config.num_bits - 1)).astype(np.uint8), labels


@functools.cache
def compressed(kind):
    """A file in three chunks, the levels in it, and the model."""
    model, images, levels, _ = made(kind)
    return model.compress(images, chunk=5), levels, with_weights(model)


@pytest.fixture(autouse=True, scope="module")
def shared():
    """One codec for the same model, bins and settings, which has traced its graphs; one model for the same place."""
    codec_of = functools.cache(Codec)

    def share(source, bins, growth, tolerance):  # the weights of an export have no hash
        return (codec_of if source.folded is None else Codec)(source, tuple(bins), growth, tolerance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "coding_model", functools.cache(saved_model.coding_model))
        patch.setattr(lossless, "Codec", share)
        yield


@pytest.fixture
def unshared(monkeypatch):
    """A codec traces its graphs anew."""
    monkeypatch.setattr(lossless, "Codec", Codec)


@functools.cache
def digits_of_test():
    """The levels of the bundled test images."""
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    return np.uint8(load_split(data_spec("digits"), "test").images > 127)


@functools.cache
def file_of_digits():
    """A file of these images, by the bundled model, and its chunks."""
    chunks = []
    about, how = {"model": "digits"}, {"verify": False, "progress": chunks.append}
    return compress(saved_model.coding_model("digits"), digits_of_test(), None, about, **how), chunks


@pytest.mark.parametrize(
    ("kind", "bins", "growth", "tolerance"),
    [
        ("binary", ["..", ".."], 1, 1e-3),
        ("binary", ["3.", "20"], 2, 2.0**-16),
        ("color, in a frame", ["3.", "20"], 1, 1e-3),
    ],
)
def test_images_come_back_exactly_whatever_the_model_and_the_bins(kind, bins, growth, tolerance):
    model, _, levels, _ = made(kind)
    labels = np.zeros(len(levels), np.int32)
    codec = Codec(with_weights(model), bins, growth, tolerance)
    encoded = codec.encode(levels, labels)
    for extra_rows in (0, 5):
        assert np.array_equal(codec.decode(encoded.data, labels, extra_rows), levels)


def test_the_models_methods_bring_images_and_single_chunks_back(monkeypatch):
    model, images, _, labels = made("gray, with classes")
    monkeypatch.setattr(lossless, "LARGEST_CHUNK", 8 * images[0].size)  # a chunk of large images has fewer
    data = model.compress(images, labels, tolerance=np.float32(1e-5))
    restored = model.decompress(data)
    assert restored.dtype == np.float32 and np.array_equal(restored, images)
    assert np.array_equal(model.decompress(data, chunk=1), images[8:])
    refuses("chunk = 2", model.decompress, data, chunk=2)


@pytest.mark.slow
def test_a_file_takes_the_bits_of_the_bound_and_little_more():
    (data, chunks), levels = file_of_digits(), digits_of_test()
    score = saved_model.coding_model("digits").model.score
    scores = [score(np.float32(levels), per_group=True, seed=seed).nelbo for seed in range(3)]
    bits = 8 * len(data) / len(levels)
    assert bits < 1.06 * np.mean(scores) / np.log(2.0) and chunks[0].start < 0.02 * 1000 * bits


def test_a_stack_gives_draws_back_and_stores_no_more_than_was_drawn():
    stack, gaussian = Stack(checksum=7), stream.model.QuantizedGaussian(-9, 9)
    draws = stack.pop((10, 10), gaussian, 0.0, 2.0)
    assert 1.0 < draws.std() < 3.0
    data, start = stack.data()
    assert 32 * 9 < start < 32 * 14 and len(data) <= 12
    stack = Stack(data=data)
    assert stack.data() != Stack(7).data()
    stack.push(draws, gaussian, 0.0, 2.0)
    assert stack.data() == Stack(7).data() != Stack(8).data()


def test_channels_that_say_something_are_coded_in_bins_as_wide_as_their_posteriors():
    ratios = np.full((5, 2, 2, 4), [0.2, 1.0, 0.9, 2.0])
    kl = np.broadcast_to([1.25, 0.0, 0.02, 0.05], ratios.shape)
    bins, draws = bins_and_draws(kl, ratios, 2.0**-17)
    assert bins == "2..0" and draws == pytest.approx(4 * np.log2(4.133**2 * 0.8 * 2.0), rel=1e-3)
    assert bins_and_draws(kl, ratios / 1000.0, 2.0**-17)[0] == "9..9"
    assert bins_and_draws(kl, ratios / 1000.0, 2.0**-12)[0] == "5..5"  # bins of another machine's sigma would differ


def test_values_near_a_tie_are_rounded_to_the_encoders_side():
    random, slack = np.random.default_rng(0), 1e-3
    values = random.uniform(-8, 8, 20_000)
    numbers, marks = rounded(values, slack, np.square)
    assert 100 < (marks > 0).sum() < 1000
    for _ in range(3):
        moved = values + random.uniform(-slack, slack, len(values))
        assert not np.array_equal(np.rint(moved**2), numbers)
        assert np.array_equal(rounded(moved, slack, np.square, marks)[0], numbers)


@pytest.mark.parametrize(("channels", "num_bits"), [(1, 8), (3, 5), (4, 2)])
def test_the_decisions_of_a_pixel_have_the_masses_of_the_likelihood(channels, num_bits):
    likelihood = ImageLikelihood("logistic_mixture", channels, 2, num_bits, exact_edges=True)
    random, pixels = np.random.default_rng(0), (5, 2, 3)
    parameters = tf.constant(random.normal(size=(*pixels, likelihood.num_parameters)), tf.float32)
    levels, nats = random.integers(2**num_bits, size=(*pixels, channels)).astype(np.uint8), 0.0
    for chosen, bit, odds, _ in PixelCoder(likelihood, 2.0**-17)._decisions(parameters, levels):
        signs = 2.0 * (levels[..., chosen] >> bit & 1) - 1.0
        nats += np.logaddexp(0.0, -signs * odds).sum(axis=(1, 2, 3))
    expected = likelihood.distribution(parameters).log_prob(levels / (2**num_bits - 1))
    np.testing.assert_allclose(-nats, expected, rtol=1e-4)


def test_what_a_model_cannot_code_is_refused():
    for changes, labels, line in (
        ({"num_flows": 1}, None, "model.num_flows = 1: latents behind flows have no codes"),
        ({"num_bits": 8, "likelihood": "normal"}, None, "model.likelihood = normal: lossless files are of bernoulli"),
        ({"num_bits": 12, "likelihood": "logistic_mixture"}, None, "num_bits = 12: lossless files are of up to 8 bits"),
        ({"num_classes": 3}, None, "the images have no classes, and this model codes images given their class"),
        ({}, 2, "this model has no classes"),
    ):
        model = tiny_model(**changes)
        refuses(line, model.compress, images_of(model.config), labels)
    _, _, levels, labels = made("gray, with classes", 130)  # the bins are chosen by 128 images
    model = made("gray, with classes")[0]
    refuses(
        "labels must be numbers of classes, 0 to 2", compress, with_weights(model), levels, np.append(labels[1:], 9)
    )


def test_values_between_the_levels_other_weights_and_wrong_settings_are_refused():
    model, images, _, labels = made("gray, with classes")
    between = images * np.float32(0.99)
    refuses("values between the 256 levels of the model: they would be lost", model.compress, between, labels)
    for settings, line in ({"chunk": 0}, "chunk"), ({"tolerance": 1e-3}, "at most 2\\^-13"):
        refuses(line, model.compress, images, labels, **settings)
    with pytest.raises(ValueError, match=r"made with the weights of SHA-256 [0-9a-f]{20}\.\.\. \(no place is noted\)"):
        shaken(tiny_model(**KINDS["binary"]), by=0.2).decompress(compressed("binary")[0])


def test_a_machine_whose_numbers_differ_too_much_says_so_and_names_the_chunk(unshared, monkeypatch):
    model, images, _, _ = made("binary")
    data, run = compressed("binary")[0], Codec._pass

    def differ(change):
        changed = lambda *inputs: [each if each is None else change(each) for each in run(*inputs)]  # noqa: E731
        monkeypatch.setattr(Codec, "_pass", changed)

    differ(lambda outputs: 1.01 * outputs)
    refuses("chunk 0: this machine's numbers differ .* by more than the tolerance", model.decompress, data)
    # The encoder decodes what it has encoded before it says that all is well.
    differ(lambda outputs: outputs + np.random.default_rng().random())
    refuses("a chunk can't be decoded .*; nothing is written: give a larger tolerance", model.compress, images)


def damaged(data, seed):
    """A file with some bits changed, cut off, with other bytes in it, or with a part of it zero, in turn."""
    random, data = np.random.default_rng(seed), bytearray(data)
    kind, at, size = seed % 6, int(random.integers(len(data))), int(random.integers(1, 40))
    if kind < 3:
        for place in random.integers(0, len(data), size=(1, 2, 8)[kind]):
            data[place] ^= 1 << random.integers(8)
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at:at] = random.bytes(size)
    else:
        data[at : at + size] = bytes(size)
    return bytes(data)


@pytest.mark.parametrize("kind", slow_but("binary", of=["binary", "color, in a frame"]))
def test_a_damaged_file_is_refused_or_decoded_rightly(kind):
    (data, levels, source), refused, seeds = compressed(kind), 0, range(72)
    for seed in seeds:
        file = damaged(data, seed)
        if seed >= 12:  # with a checksum of the file that is right
            file = file[:4] + zlib.crc32(file[8:]).to_bytes(4, "little") + file[8:]
        try:
            assert np.array_equal(np.concatenate(list(decompress(source, file))), levels), seed
        except ValueError as error:
            assert "\n" not in str(error), seed
            refused += 1
    assert refused > 0.8 * len(seeds)


def test_no_size_of_a_header_is_believed_and_other_files_and_newer_versions_are_refused():
    for change, line in (
        ({"images": 2**24}, "chunks do not match"),
        ({"images": 2**24 + 1}, "from 1 to 16777216"),
        ({"images": 2**24, "chunk": 2**40}, "from 1 to 65536"),
        ({"images": 60_000, "chunk": 20_000, "shape": [4, 4, 1000]}, "its chunks are too large"),
        ({"shape": [4, 4, 1e9]}, "`shape`"),
        ({"shape": [4, 4, 9]}, "damaged"),
        ({"growth": 0}, "`growth`"),
        ({"bins": ["31"]}, "damaged"),
        ({"bins": ["x3", "20"]}, "damaged"),
        ({"sha256": "01" * 10}, "made with the weights"),
        ({"coder": "constriction 9"}, "made with constriction 9, and constriction 0.5 is installed"),
        ({"tolerance": float("nan")}, "`tolerance`"),
        ({"model": "x" * (2**26 + 1)}, "damaged"),
    ):
        data, _, source = compressed("binary")
        header, chunks = unpacked(data)
        chunks = (chunks * 9)[: min(9, -(-(header | change)["images"] // (header | change)["chunk"]))]
        refuses(line, list, decompress(source, packed(header | change, chunks)))
    for data, line in (b"", "not a file of nvae-compress"), (b"nvc", "cut off"), (b"nvc\2", "of version 2, and this"):
        refuses(line, unpacked, data)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with pictures of digits in sub-folders, and with arrays of them."""
    folder = tmp_path_factory.mktemp("digits")
    images = 255 * digits_of_test()[:24]
    for number, image in enumerate(images):
        place = folder / "pictures" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).convert("1" if number % 3 else "L").save(place / f"{number}.png")
    np.save(folder / "levels.npy", images[..., 0] >> 7)
    np.savez(folder / "set.npz", images=images > 127, labels=np.arange(24) % 10)
    (folder / "some-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3]) + np.array(images.shape[:3], ">u4").tobytes() + images.tobytes()
    )
    (folder / "some-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 24, *range(24)]))
    return folder


FORMS = ["pictures", "levels.npy", "set.npz", "some-images-idx3-ubyte"]


@pytest.mark.parametrize("name", slow_but(of=FORMS))
def test_the_commands_bring_files_back_with_names_and_classes(digits, tmp_path, done, name):
    printed = done("export.compress", "--workdir=digits", digits / name, f"--output={tmp_path}/set.nvc", "--chunk=16")
    assert "24 images in " in printed and "values near a tie" in printed and "decoded again: the same pixels" in printed
    described = done("export.compress", "--info", tmp_path / "set.nvc")
    assert "images: 24" in described and "chunks: 2, " in described and "model: digits" in described
    output = tmp_path / (name if name.endswith(("npy", "npz")) else "set.npz" if "idx" in name else "folder")
    assert "24 images in " in done("export.decompress", tmp_path / "set.nvc", f"--output={output}")
    if name == "pictures":
        files = sorted((digits / name).rglob("*.png"))
        assert len(files) == 24
        for file in files:
            written = Image.open(output / file.relative_to(digits / name))
            assert np.array_equal(np.array(written), np.array(Image.open(file).convert("L")))
        return
    restored = np.load(output)
    if name.endswith("npy"):
        expected = np.load(digits / name)
        assert restored.dtype == expected.dtype and np.array_equal(restored, expected)
    else:
        images = np.load(digits / "set.npz")["images"]
        expected = images if name == "set.npz" else np.uint8(255) * images[..., 0]
        assert restored["images"].dtype == expected.dtype and np.array_equal(restored["images"], expected)
        assert restored["labels"].tolist() == list(range(24) if "idx" in name else np.arange(24) % 10)


@pytest.mark.slow
def test_a_set_decodes_from_a_saved_model_and_a_keras_file_too(
    digits, tmp_path, done, finished_run, finished_model, monkeypatch
):
    monkeypatch.setattr(Signatures, "names", ("sample",))  # what decodes reads the variables alone
    finished_model.save(tmp_path / "model.keras")
    saved_model.export_saved_model(finished_model, tmp_path / "export")
    done("export.compress", f"--workdir={finished_run[0]}", digits / "levels.npy", f"--output={tmp_path}/set.nvc")
    for number, place in enumerate(("model.keras", "export/1")):
        output = tmp_path / f"{number}.npy"
        done("export.decompress", tmp_path / "set.nvc", f"--output={output}", f"--workdir={tmp_path / place}")
        assert np.array_equal(np.load(output), np.load(digits / "levels.npy"))


# Commands in a folder with the files of `digits`, a wrong file and a set made by a model that is not there.
MISTAKES = [
    ("compress --workdir=digits pictures", "--output is missing"),
    ("compress --workdir=digits --overwrite nowhere --output=x.nvc", "nowhere: no such file or folder of images"),
    ("compress --workdir=digits pictures --output=x.zip", "--output=x.zip: give the name of a file *.nvc"),
    ("compress --workdir=nowhere pictures --output=x.nvc", "nowhere: no such folder"),
    (
        "compress --workdir=digits gray.npy --output=x.nvc",
        "image 2 has the value 7, none of the model's 2 levels (0, 255",
    ),
    ("compress --workdir=digits wide.npy --output=x.nvc", "its images are 16x17x1, and the model takes 16x16x1"),
    (
        "compress --workdir=digits odd --output=x.nvc",
        "a.png: is 5x4x3 of 8 bits, and the model takes 16x16x1 of 8 bits",
    ),
    ("compress --workdir=digits levels.npy --output=x.nvc --tolerance=1e-3", "tolerance = 0.001: must be"),
    ("compress --info=gray.npy", "gray.npy: not a file of nvae-compress"),
    ("decompress lost.nvc --output=x.npy", "lost.nvc: needs the model with weights of SHA-256 "),
    ("decompress lost.nvc --output=x.npy --workdir=digits", "lost.nvc: made with the weights of SHA-256 "),
    ("decompress damaged.nvc --output=x.npy", "damaged.nvc: damaged or cut off (its checksum does not match)"),
    ("decompress elsewhere.nvc --output=x.npy", "elsewhere.nvc: chunk 1: this machine's numbers differ"),
    ("decompress elsewhere.nvc --output=x", "elsewhere.nvc: chunk 1: this machine's numbers differ"),
    ("decompress lost.nvc --output=x.png", "x.png: give a new folder, or a file .npy or .npz"),
    ("decompress lost.nvc --output=gray.npy", "gray.npy exists already and is not overwritten"),
]


@pytest.fixture(scope="module")
def mistaken(digits):
    np.save(
        digits / "gray.npy", np.where(np.arange(5)[:, None, None] == 2, np.uint8(7), np.zeros((5, 16, 16), np.uint8))
    )
    np.save(digits / "wide.npy", np.zeros((5, 16, 17), np.uint8))
    (digits / "odd").mkdir()
    Image.new("RGB", (4, 5)).save(digits / "odd" / "a.png")
    source, levels = saved_model.coding_model("digits"), np.load(digits / "levels.npy")[..., np.newaxis]
    data = compress(source, levels, None, {"model": "digits"}, 10, verify=False)
    header, chunks = unpacked(data)
    (digits / "damaged.nvc").write_bytes(data[:-9] + data[-8:])
    (digits / "elsewhere.nvc").write_bytes(packed(header, [chunks[0], chunks[1][::-1], chunks[2]]))
    (digits / "lost.nvc").write_bytes(packed(header | {"sha256": "0" * 20, "model": "runs/lost"}, chunks))
    return digits


@pytest.mark.parametrize(("command", "line"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_file(mistaken, refused, monkeypatch, command, line):
    monkeypatch.chdir(mistaken)
    before = sorted(mistaken.rglob("*"))
    script, *arguments = command.split()
    assert line in refused(f"export.{script}", *arguments)
    assert sorted(mistaken.rglob("*")) == before


@pytest.fixture(scope="module")
def for_others(tmp_path_factory):
    """For each of two models, of digits and of colors: its place, a file that it has made, and the levels in it."""
    folder = tmp_path_factory.mktemp("files")
    color = shaken(tiny_model(**KINDS["color, in a frame"]))
    color.save(folder / "color.keras")
    images = images_of(color.config, 200)
    triples = []
    for place, data, levels in (
        ("digits", file_of_digits()[0], digits_of_test()),
        (str(folder / "color.keras"), color.compress(images, chunk=100, verify=False), np.uint8(np.rint(images * 31))),
    ):
        file = folder / f"{len(levels)}.nvc"
        file.write_bytes(data)
        np.save(file.with_suffix(".npy"), levels)
        triples += [place, file, file.with_suffix(".npy")]
    return triples


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_decodes_the_same_pixels(for_others, machine):
    output_of(["-c", ELSEWHERE, *for_others], env=os.environ | machine)


@pytest.mark.slow
def test_another_machine_whose_numbers_differ_by_nearly_the_tolerance_decodes_the_same_pixels(unshared, monkeypatch):
    source, levels, run = saved_model.coding_model("digits"), digits_of_test(), Codec._pass
    data, _ = file_of_digits()

    def moved(values):
        noise = tf.random.stateless_uniform(tf.shape(values), (1, 2), -0.9, 0.9)
        return values + 2.0**-17 * noise * (1.0 + tf.abs(values))

    differ = lambda *inputs: [each if each is None else moved(each) for each in run(*inputs)]  # noqa: E731
    monkeypatch.setattr(Codec, "_pass", differ)
    assert np.array_equal(np.concatenate(list(decompress(source, data))), levels)
