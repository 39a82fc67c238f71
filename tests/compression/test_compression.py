import functools
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nvae_tf.compression import codec as codecs
from nvae_tf.compression import container
from nvae_tf.compression.codec import Codec, Settings
from nvae_tf.compression.latent_coder import GroupCoder, _posterior_table, bins_of_channels
from nvae_tf.compression.rounding import Rounder, frequencies
from tests import ROOT
from tests.tiny_model import images_of, shaken, tiny_model

KINDS = {
    "binary": {"image_channels": 3},
    "frame": {"image_height": 3, "image_width": 2, "padded_height": 4, "padded_width": 4},
    "gray": {"num_bits": 8, "likelihood": "logistic_mixture", "num_mixtures": 3},
    "color": {"num_bits": 5, "likelihood": "logistic_mixture", "num_mixtures": 2, "image_channels": 3},
    "four channels": {"num_bits": 2, "likelihood": "logistic_mixture", "num_mixtures": 2, "image_channels": 4},
    "classes": {"num_classes": 3},
}
# What decodes on another machine: instruction sets, kernels, threads.
MACHINES = [
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "TF_ENABLE_ONEDNN_OPTS=0",
    "TF_NUM_INTRAOP_THREADS=1",
]
ELSEWHERE = """
import sys
import numpy as np
from nvae_tf.compression import container
from nvae_tf.compression.codec import model_at, read_chunk
codec, _ = model_at(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    archive = container.read(file)
    for extra_rows in (0, 3):
        levels = [read_chunk(file, archive, codec, number, extra_rows) for number in range(len(archive.chunks))]
        assert np.array_equal(np.concatenate(levels), np.load(sys.argv[3]))
"""


@functools.cache
def made(kind, count=30):
    """A model, images of it, their labels or None, its codec; not to be changed."""
    model = shaken(tiny_model(**KINDS[kind]))
    labels = np.arange(count, dtype=np.int32) % 3 if model.config.num_classes else None
    return model, images_of(model.config, count), labels, Codec(model)


@functools.cache
def compressed(kind, count=12):
    """A file in three chunks, the levels in it, and the codec."""
    model, images, _, codec = made(kind, count)
    return model.compress(images, chunk=5), levels_of(codec, images), codec


def levels_of(codec, images):
    return np.rint(images * codec.highest).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_back_exactly_whatever_the_model_and_the_bins(kind):
    _, images, labels, codec = made(kind)
    levels = levels_of(codec, images)
    for settings in Settings(["3.", "20"], 4, 7, 2.0**-16), Settings(["..", ".."], 1, 100, 1e-3):
        encoded = codec.encode(levels, labels, settings)
        for extra_rows in (0, 5):
            assert np.array_equal(codec.decode(encoded.data, len(levels), labels, settings, extra_rows), levels)


@pytest.mark.parametrize("kind", ["gray", "classes"])
def test_the_models_methods_bring_images_back(kind):
    model, images, labels, _ = made(kind)
    data = model.compress(images, labels, chunk=20)
    restored = model.decompress(data)
    assert restored.dtype == np.float32 and np.array_equal(restored, images)
    assert len(container.read(io.BytesIO(data)).chunks) == 2


def test_a_chunk_takes_the_bits_of_the_bound_and_little_more():
    import nvae_tf
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    model, images = nvae_tf.load("digits"), load_split(data_spec("digits"), "test").images
    codec, levels = Codec(model), np.uint8(images >= 128)
    bound = np.mean([np.mean(model.score(np.float32(levels), per_group=True, seed=seed).nelbo) for seed in range(3)])
    encoded = codec.encode(levels, None, codec.settings(levels, None, 2.0**-16, len(levels)))
    bits = 8 * len(encoded.data) / len(levels)
    assert bits < 1.06 * bound / np.log(2.0) and encoded.first < 0.02 * 1000 * bits


def test_tables_are_whole_numbers_that_follow_from_arithmetic_of_ieee_alone():
    logs = np.linspace(-45.0, 0.0, 1001)
    np.testing.assert_allclose(frequencies(logs, 2.0**52), np.rint(np.exp(logs) * 2.0**52), rtol=1e-11, atol=1.0)
    table = _posterior_table().astype(np.float64)
    assert (table == np.rint(table)).all() and table.min() == 0.0 and table.sum(axis=1).max() < 2**24
    # Sigma is right where bins are fine, and the mean is that of the row.
    offsets = np.array([(each + 1) // 2 * (1 if each % 2 else -1) for each in range(table.shape[1])])
    means = (table * offsets).sum(axis=1) / table.sum(axis=1)
    np.testing.assert_allclose(means.reshape(2, -1)[:, 4:], [[0.0] * 17, [0.5] * 17], atol=0.02)
    sigmas = np.sqrt((table * (offsets - means[:, None]) ** 2).sum(axis=1) / table.sum(axis=1))
    np.testing.assert_allclose(sigmas[8:21], 2.0 ** (np.arange(13) / 4), rtol=0.02)


def test_channels_are_coded_where_they_save_more_than_the_first_image_pays():
    ratios = np.full((5, 2, 2, 4), [0.3, 1.0, 0.9, 2.0])
    assert bins_of_channels(np.array([5.0, 0.0, 0.001, 0.1]), ratios, chunk=1000) == "3..0"
    coder = GroupCoder("3..0", (2, 2, 4))
    assert coder.count == 8 and coder.whitened(np.full((1, 2, 2, 2), 4))[0, 0, 0].tolist() == [0.5, 4.0]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_values_near_a_tie_are_rounded_to_the_encoders_side(count):
    generator = np.random.default_rng(0)
    values = generator.uniform(-8, 8, 20_000)
    places = generator.choice(len(values), count, replace=False)
    values[places] = np.rint(values[places]) + 0.5 + generator.uniform(-1e-4, 1e-4, count)
    far = np.abs(values - np.floor(values) - 0.5) < 2e-4
    values[far & ~np.isin(np.arange(len(values)), places)] += 0.1
    encoder = Rounder()
    numbers = [
        encoder.rounded(first, part, part - 1e-4, part + 1e-4)
        for first, part in ((10_000, values[10_000:]), (0, values[:10_000]))
    ]
    sides = encoder.sides()
    assert len(sides) < 2 + count * (2.5 + np.log2(20_000 / max(count, 1))) / 8 + 2
    moved = values + generator.uniform(-1e-4, 1e-4, len(values))
    decoder = Rounder(sides)
    first, last = (
        decoder.rounded(first, part, part, part) for first, part in ((0, moved[:10_000]), (10_000, moved[10_000:]))
    )
    assert np.array_equal(first, numbers[1]) and np.array_equal(last, numbers[0])
    if count == 500:
        with pytest.raises(ValueError, match="differ from those of the encoder by more than the tolerance"):
            Rounder(sides).rounded(0, moved[:10_000] + 0.4, moved[:10_000], moved[:10_000])


@pytest.mark.parametrize(
    ("changes", "labels", "line"),
    [
        ({"num_flows": 1}, None, "model.num_flows = 1: the density of a latent behind flows can't be coded"),
        ({"num_bits": 8, "likelihood": "normal"}, None, "model.likelihood = normal: it has a density and no masses"),
        ({"num_classes": 3}, None, "the images have no classes, and this model codes images given their class"),
        ({}, 2, "this model has no classes"),
    ],
)
def test_what_a_model_cannot_code_is_refused(changes, labels, line):
    model = tiny_model(**changes)
    with pytest.raises(ValueError, match=line):
        model.compress(images_of(model.config), labels)


def test_values_between_the_levels_other_weights_and_wrong_settings_are_refused():
    model, images, _, _ = made("gray")
    with pytest.raises(ValueError, match="values between the 256 levels of the model: they would be lost"):
        model.compress(images * np.float32(0.99))
    for settings, line in ({"chunk": 0}, "chunk"), ({"tolerance": 0.5}, "tolerance = 0.5"):
        with pytest.raises(ValueError, match=line):
            model.compress(images, **settings)
    data = model.compress(images)
    with pytest.raises(ValueError, match=r"made with the weights of SHA-256 [0-9a-f]{16}\.\.\. \(no place is noted\)"):
        shaken(tiny_model(**KINDS["gray"]), by=0.2).decompress(data)


def test_a_machine_whose_numbers_differ_too_much_says_so_and_names_the_chunk(monkeypatch):
    model, images, _, _ = made("gray")
    data = model.compress(images, chunk=15)
    run = codecs.Codec._run
    monkeypatch.setattr(codecs.Codec, "_run", lambda *arguments: 1.01 * run(*arguments))
    with pytest.raises(ValueError, match="chunk 0: .*; it is damaged, or this machine can't decode it"):
        model.decompress(data)
    # The encoder decodes what it has encoded before it says that all is well.
    monkeypatch.setattr(codecs.Codec, "_run", lambda self, *a: run(self, *a) + np.random.default_rng().random())
    with pytest.raises(ValueError, match="a chunk can't be decoded .*; nothing is written: give a larger tolerance"):
        model.compress(images)


def damaged(data, seed):
    """A file with some bits changed, cut off, with other bytes behind it, or with a part of it twice or zero."""
    random, data = np.random.default_rng(seed), bytearray(data)
    kind, at, size = random.integers(6), int(random.integers(len(data))), int(random.integers(1, 40))
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


@pytest.mark.parametrize(
    ("kind", "seeds"),
    [
        ("binary", 40),
        ("color", 20),
        pytest.param("binary", 700, marks=pytest.mark.slow),
        pytest.param("color", 300, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_refused_or_decoded_rightly(kind, seeds):
    (data, levels, codec), refused = compressed(kind), 0
    for seed in range(seeds):
        file = io.BytesIO(damaged(data, seed))
        try:
            archive = container.read(file)
            codecs.check_fits(archive, codec)
            restored = [codecs.read_chunk(file, archive, codec, number) for number in range(len(archive.chunks))]
            assert np.array_equal(np.concatenate(restored), levels), seed
        except ValueError as error:
            assert "\n" not in str(error), seed
            refused += 1
    assert refused > 0.8 * seeds


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"images": 2**39}, "chunks do not match"),
        ({"images": 2**39, "chunk": 2**40}, "from 1 to 65536"),
        ({"images": 60_000, "chunk": 20_000, "shape": [4, 4, 1000]}, "its chunks are too large"),
        ({"shape": [4, 4, 1e9]}, "`shape`"),
        ({"growth": 0}, "`growth`"),
        ({"batch": 2**20}, "`batch`"),
        ({"bins": ["31"]}, "does not fit the model"),
        ({"bins": ["x3", "20"]}, "chunk 0"),
        ({"sha256": "x" * 10}, "made with the weights"),
        ({"tolerance": float("nan")}, "`tolerance`"),
        ({"model": "x" * (2**26 + 1)}, "a section is too long"),
    ],
)
def test_no_size_of_a_header_is_believed(change, line):
    data, _, codec = compressed("binary")
    archive, file = container.read(io.BytesIO(data)), io.BytesIO()
    chunks = [data[start:end] for start, end in archive.chunks]
    container.write(file, archive.header | change, chunks, {})
    with pytest.raises(ValueError, match=line):
        archive = container.read(file)
        codecs.check_fits(archive, codec)
        codecs.read_chunk(file, archive, codec, 0)


def test_other_files_and_newer_versions_are_refused():
    for data, line in (b"", "not a file of nvae-compress"), (b"nvc", "cut off"), (b"nvc\2", "of version 2, and this"):
        with pytest.raises(ValueError, match=line):
            container.read(io.BytesIO(data))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with pictures of digits in sub-folders, and with arrays of them."""
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    folder = tmp_path_factory.mktemp("digits")
    images = load_split(data_spec("digits"), "test").images[:24]
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


@pytest.mark.parametrize("name", ["pictures", "levels.npy", "set.npz", "some-images-idx3-ubyte"])
def test_the_commands_bring_files_back_with_names_and_classes(digits, tmp_path, done, name):
    printed = done("export.compress", "--workdir=digits", digits / name, f"--output={tmp_path}/set.nvc", "--chunk=16")
    assert "24 images in " in printed and "values near a tie" in printed and "decoded again: the same pixels" in printed
    described = done("export.compress", "--info", tmp_path / "set.nvc")
    assert "images: 24" in described and "chunks: 2 of " in described and "model: digits" in described
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


def test_a_set_decodes_from_a_saved_model_and_a_keras_file_too(digits, tmp_path, done, finished_run, finished_model):
    from nvae_tf.serving.saved_model import export_saved_model

    finished_model.save(tmp_path / "model.keras")
    export_saved_model(finished_model, tmp_path / "export")
    done("export.compress", f"--workdir={finished_run[0]}", digits / "levels.npy", f"--output={tmp_path}/set.nvc")
    for number, place in enumerate(("model.keras", "export/1")):
        output = tmp_path / f"{number}.npy"
        done("export.decompress", tmp_path / "set.nvc", f"--output={output}", f"--workdir={tmp_path / place}")
        assert np.array_equal(np.load(output), np.load(digits / "levels.npy"))


# Commands in a folder with the files of `digits`, a wrong file and a set made by a model that is not there.
MISTAKES = [
    ("compress --workdir=digits pictures", "--output is missing"),
    ("compress --workdir=digits nowhere --output=x.nvc", "nowhere: no such file or folder of images"),
    ("compress --workdir=digits pictures --output=x.zip", "--output=x.zip: give the name of a file *.nvc"),
    ("compress --workdir=nowhere pictures --output=x.nvc", "nowhere: no such folder"),
    ("compress --workdir=digits gray.npy --output=x.nvc", "image 2 has the value 7, none of the model's 2 (0, 255)"),
    ("compress --workdir=digits wide.npy --output=x.nvc", "its images are 16x17x1, and the model takes 16x16x1"),
    ("compress --workdir=digits odd --output=x.nvc", "odd/a.png: is 5x4x3 of 8 bits, and the model takes 16x16x1"),
    ("compress --workdir=digits levels.npy --output=x.nvc --tolerance=2", "tolerance = 2.0: must be above 0"),
    ("compress --info=gray.npy", "gray.npy: not a file of nvae-compress"),
    ("decompress lost.nvc --output=x.npy", "lost.nvc: needs the model with weights of SHA-256 "),
    ("decompress lost.nvc --output=x.npy --workdir=digits", "lost.nvc: made with the weights of SHA-256 "),
    ("decompress damaged.nvc --output=x.npy", "damaged.nvc: chunk 1: "),
    ("decompress damaged.nvc --output=x", "damaged.nvc: chunk 1: "),
    ("decompress damaged.nvc --output=gray.npy", "gray.npy exists already and is not overwritten"),
]


@pytest.fixture(scope="module")
def mistaken(digits):
    np.save(
        digits / "gray.npy", np.where(np.arange(5)[:, None, None] == 2, np.uint8(7), np.zeros((5, 16, 16), np.uint8))
    )
    np.save(digits / "wide.npy", np.zeros((5, 16, 17), np.uint8))
    (digits / "odd").mkdir()
    Image.new("RGB", (4, 5)).save(digits / "odd" / "a.png")
    codec, _ = codecs.model_at("digits")
    levels, file = np.load(digits / "levels.npy")[..., np.newaxis], io.BytesIO()
    codecs.write_stream(file, codec, levels, None, {"model": "digits"}, {}, 10, 2.0**-16, False)
    data, archive = bytearray(file.getvalue()), container.read(file)
    data[archive.chunks[1][1] - 5] ^= 1
    (digits / "damaged.nvc").write_bytes(data)
    codec.sha256 = "0" * 64
    with (digits / "lost.nvc").open("wb") as file:
        codecs.write_stream(file, codec, levels, None, {"model": "runs/lost"}, {}, 10, 2.0**-16, False)
    return digits


@pytest.mark.parametrize(("command", "line"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_file(mistaken, refused, monkeypatch, command, line):
    monkeypatch.chdir(mistaken)
    before = sorted(mistaken.rglob("*"))
    script, *arguments = command.split()
    assert line in refused(f"export.{script}", *arguments)
    assert sorted(mistaken.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_decodes_the_same_pixels(tmp_path, machine):
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    codec, _ = codecs.model_at("digits")
    levels = np.uint8(load_split(data_spec("digits"), "test").images > 127)
    np.save(tmp_path / "levels.npy", levels)
    with (tmp_path / "set.nvc").open("wb") as file:
        codecs.write_stream(file, codec, levels, None, {}, {}, 180, 2.0**-16, False)
    color = shaken(tiny_model(**KINDS["color"]))
    images = images_of(color.config, 200)
    color.save(tmp_path / "color.keras")
    (tmp_path / "color.nvc").write_bytes(color.compress(images, verify=False))
    np.save(tmp_path / "color.npy", np.rint(images * 31).astype(np.uint8))
    name, _, value = machine.partition("=")
    settings = {"cwd": ROOT, "env": os.environ | {name: value}, "capture_output": True, "text": True}
    for files in (("digits", "set.nvc", "levels.npy"), ("color.keras", "color.nvc", "color.npy")):
        model, *others = (file if file == "digits" else str(tmp_path / file) for file in files)
        process = subprocess.run([sys.executable, "-c", ELSEWHERE, model, *others], **settings)
        assert process.returncode == 0, process.stderr
