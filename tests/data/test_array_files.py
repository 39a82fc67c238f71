import dataclasses
import gzip
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from nvae_tf.data import data_spec
from nvae_tf.data.pictures import stored_values
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import held_out, holds_out, load_split
from tests import refuses
from tests.data.picture_factory import idx, own_images, random_pixels, stored_pixels, values_and_labels, write_files
from tests.tiny_model import assert_same

IMAGES = random_pixels(30, 5, 6, 3)
OTHERS = random_pixels(4, 5, 6, 3, seed=1)


def saved(path, array):
    np.save(path, array)
    return path


def parts(spec):
    return tuple(stored_pixels(load_split(spec, split)) for split in ("train", "test"))


def assert_refused(path, message, **settings):
    refuses(f"^{path}: .*{message}", lambda: load_split(own_images(path, **settings), "train"))


@pytest.mark.parametrize(
    ("array", "form", "expected"),
    [
        (IMAGES, (5, 6, 3, 8), IMAGES),
        (IMAGES[..., :2], (5, 6, 2, 8), IMAGES[..., :2]),
        (IMAGES[..., 1] > 99, (5, 6, 1, 8), (IMAGES[..., 1:2] > 99) * 255),
        (IMAGES.astype(np.uint16) * 256 + 255, (5, 6, 3, 16), IMAGES),
        (IMAGES[::-1, ::-1], (5, 6, 3, 8), IMAGES[::-1, ::-1]),
        (np.tile(IMAGES, 10), (5, 6, 30, 8), np.tile(IMAGES, 10)),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_types_and_shapes(array, form, expected, ending, tmp_path):
    path = tmp_path / f"images.{ending}"
    np.save(path, array) if ending == "npy" else np.savez_compressed(path, array)
    spec = own_images(path, test_fraction=0.2)
    assert spec.source == "arrays" and (*spec.image_shape, spec.file_bits) == form
    train, test = parts(spec)
    assert (len(train), len(test)) == (24, 6)
    found = sorted(image.tobytes() for image in (*train, *test))
    assert found == sorted(image.astype(np.uint8).tobytes() for image in expected)


def test_the_file_is_not_read_into_memory(tmp_path):
    path = saved(tmp_path / "images.npy", IMAGES)
    source = load_split(own_images(path), "train")
    before = stored_pixels(source)
    # A mapped file that is written to shows it.
    np.load(path, mmap_mode="r+")[:] = 255 - IMAGES
    np.testing.assert_array_equal(stored_pixels(source), 255 - before)


# Image i has the value i everywhere, and is of class i % 4.
NUMBERED = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], [40, 5, 6, 3])
CLASSES = np.arange(40) % 4
NAMES = "images labels", "train train_labels test test_labels", "x_train y_train x_test y_test", "a a_labels b b_labels"


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_labels_go_with_their_images(names, ending, tmp_path):
    # Keras has labels of one column.
    arrays = dict(zip(names.split(), (NUMBERED, CLASSES[:, None], NUMBERED[7:17], CLASSES[7:17]), strict=False))
    path = tmp_path if ending == "npy" else tmp_path / "set.npz"
    for name, array in arrays.items():
        np.savez(path, **arrays) if ending == "npz" else saved(path / f"{name}.npy", array)
    spec = own_images(path, labels=True, **({"train_split": "a", "test_split": "b"} if names[0] == "a" else {}))
    train, test = values_and_labels(spec)
    for values, labels in (train, test):
        assert labels == [value % 4 for value in values]
    assert holds_out(spec) == (names == "images labels")
    assert (len(train[0]), len(test[0])) == ((36, 4) if holds_out(spec) else (40, 10))
    # A class may have no images.
    assert load_split(dataclasses.replace(spec, num_classes=6), "test").class_names == tuple("012345")


def test_wrong_labels_are_refused(tmp_path):
    path = tmp_path / "set.npz"
    for labels, message in (
        (None, "has no array 'labels' beside 'images'; add it"),
        (CLASSES[1:], r"'labels': has int64 \[39\] as labels; they must be 40 whole numbers from 0 to 99999 at most"),
        (CLASSES - 1, "must be 40 whole numbers from 0"),
        (CLASSES * 0, "has 1 classes; set --config.data.labels=False"),
        (np.array([{}, None], object), "Object arrays"),
    ):
        np.savez(path, images=NUMBERED, **({} if labels is None else {"labels": labels}))
        refuses(f"{path}.*{message}", own_images, path, labels=True)
    np.savez(path, x_train=NUMBERED, y_train=CLASSES, x_test=NUMBERED[:4], y_test=CLASSES[:4] + 1)
    with pytest.raises(ValueError, match="the test labels go to 4, the training images have 4 classes; set --config"):
        load_split(own_images(path, labels=True), "test")


def test_wrong_arrays_are_refused(tmp_path):
    for array, message in (
        ({"a": IMAGES, "b": OTHERS}, "has the arrays a, b; there must be one array of images, or train and test"),
        ({"labels": np.arange(3)}, r"it has int64 \[3\]; images are uint8, uint16 or bool \[count, height, width"),
        ({"images": np.array([{}, None], object)}, "it has object"),
        (IMAGES.transpose(0, 3, 1, 2), r"it has uint8 \[30, 3, 5, 6\]"),
        (random_pixels(9, 8, 16, 16), r"it has uint8 \[9, 8, 16, 16\]; channels come last: save np.moveaxis"),
        (random_pixels(9, 8, 16, 33), r"it has uint8 \[9, 8, 16, 33\]; .* 1 to 32 channels"),
        (IMAGES / 255, "it has float64"),
        (random_pixels(5, 6, 3), "it has"),
        (IMAGES.astype(np.uint16), "uint16 goes to 65535, but no value is above 255"),
    ):
        path = tmp_path / ("set.npz" if isinstance(array, dict) else "images.npy")
        np.savez(path, **array) if isinstance(array, dict) else np.save(path, array)
        assert_refused(path, message)


DEEP = random_pixels(30, 5, 6, 9, dtype=np.uint16) >> 4
FLOATS = np.random.default_rng(0).normal(size=(30, 5, 6, 1)) * 100
WHOLE, RANGE = {"num_bits": 12}, {"range": (-5000, 3000.5)}


@pytest.mark.parametrize("save", [np.save, np.savez_compressed])
@pytest.mark.parametrize(
    ("array", "settings"),
    [(DEEP, WHOLE), (DEEP.astype(">u2"), WHOLE), (FLOATS.astype(np.int32), RANGE), (FLOATS[..., 0], RANGE)],
)
def test_deep_values_stay_as_they_are_up_to_the_graph(array, settings, save, tmp_path):
    save(path := tmp_path / ("images.npy" if save is np.save else "images.npz"), array)
    spec = own_images(path, test_fraction=0.2, **settings)
    form = ("uint16", 16, "logistic_mixture") if settings is WHOLE else ("float32", 32, "normal")
    assert (spec.dtype, spec.file_bits, spec.likelihood) == form
    stored, (low, high) = stored_pixels(source := load_split(spec, "train")), spec.range or (0, 4095)
    expected = np.delete(array, held_out(list(map(str, range(30))), spec)[1], axis=0).reshape(stored.shape)
    assert_same([stored], [expected.astype(form[0])])
    (images,) = evaluation_batches(source, spec, 24, seed=0)
    np.testing.assert_allclose(images, (expected.astype(np.float64) - low) / (high - low), atol=2e-7)
    assert_same([np.rint(stored_values(images.numpy(), spec))], [np.rint(stored)])


@pytest.mark.parametrize(
    ("array", "settings", "message"),
    [
        (DEEP, {"num_bits": 11}, "has values from .* to 40.*, and data.num_bits = 11 go to 2047; set it to 12"),
        (FLOATS, {"range": (0, 500)}, "values from -.*, and data.range is 0,500; set it to -.*,500.* or wider"),
        (np.where(FLOATS > 200, np.nan, FLOATS), {"range": (-900, 900)}, r"has NaN \(not a number\) or infinite"),
        (
            DEEP,
            {"channels": 3},
            "has 9 channels, but data.channels is 3; train with data.channels=9, or leave these images out",
        ),
    ],
)
def test_what_the_settings_do_not_fit_is_refused(array, settings, message, tmp_path):
    assert_refused(saved(tmp_path / "images.npy", array), message, **settings)


def test_damaged_files_are_refused(tmp_path):
    whole = saved(tmp_path / "images.npy", IMAGES).read_bytes()
    for content in (whole + b"\0", whole[:-1], whole[:40], whole.replace(b"(30,", b"(-1,"), b""):
        (tmp_path / "images.npy").write_bytes(content)
        assert_refused(tmp_path / "images.npy", "")
    np.savez(tmp_path / "set.npz", x_train=IMAGES, x_test=OTHERS)
    content = (tmp_path / "set.npz").read_bytes()
    # A value, a flag that says encrypted, and a name: without this array the other would be taken for the whole set.
    for place, mask in ((1500, 0x55), (content.index(b"PK\x01\x02") + 8, 1), (content.rindex(b"x_test.npy") + 9, 0x55)):
        changed = bytearray(content)
        changed[place] ^= mask
        for damaged in (content[:place], changed):
            (tmp_path / "set.npz").write_bytes(damaged)
            assert_refused(tmp_path / "set.npz", "not an array of plain numbers that can be read")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_what_is_not_wanted_may_be_anything_but_not_what_may_be_the_images(tmp_path):
    """A text, Python objects, damaged arrays."""
    beside = {"readme.txt": "Dear diary", "names.npy": npy(np.array([{}, None], object))}
    beside["labels.npy"] = npy(np.arange(30))[:-5]
    both = {"notes.npy": "not even an array", "x_train.npy": npy(IMAGES), "x_test.npy": npy(OTHERS)}
    for name, contents in (
        ("one", beside | {"images.npy": npy(IMAGES)}),
        ("both", beside | both),
        ("set", {"a.npy": npy(IMAGES), "b.npy": b"Dear diary"}),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for entry, content in contents.items():
                file.writestr(entry, content)
    assert sum(map(len, parts(own_images(tmp_path / "one.npz")))) == len(IMAGES)
    assert_same(parts(own_images(tmp_path / "both.npz")), (IMAGES, OTHERS))
    assert_refused(tmp_path / "set.npz", "b.npy: not an array")


def test_more_than_the_memory_is_not_unpacked(free_memory, tmp_path):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros_like(IMAGES))
    spec = own_images(tmp_path / "set.npz")
    free_memory(3 * IMAGES.size - 1)
    refuses("set.npz: .*need .* GB of memory, .* are free: save them as a .npy file", load_split, spec, "train")
    free_memory(3 * IMAGES.size)
    assert load_split(spec, "train").count == 27


MINUS_NINE = b"{'descr': '|i1', 'fortran_order': False, 'shape': (-9,), }"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (npy(np.arange(4000) % 2), None),
        (b"\x93NUMPY\1\0" + bytes([len(MINUS_NINE), 0]) + MINUS_NINE + bytes(10**8), r"its header says int8 \[-9\]"),
        (b"\x93NUMPY\2\0" + (10**8).to_bytes(4, "little") + bytes(10**8), ""),
    ],
    ids=["whole", "negative", "long"],
)
def test_an_array_is_in_memory_once_and_a_wrong_header_does_not_make_it_larger(labels, message, tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", npy(np.zeros([4000, 50, 50, 1], np.uint8)))
        file.writestr("labels.npy", labels)
    tracemalloc.start()
    if message is None:
        assert load_split(own_images(path, labels=True, test_fraction=0.5), "train").count == 2000
    else:
        refuses(f"^{path}: labels.npy: not an array .*{message}", own_images, path, labels=True)
    assert tracemalloc.get_traced_memory()[1] < 16e6
    tracemalloc.stop()


TRAIN, TEST = random_pixels(9, 6, 8), random_pixels(4, 6, 8, seed=1)
TRAIN_LABELS, TEST_LABELS = np.arange(9) % 3, np.arange(4)
MNIST_FILES = {
    "train-images-idx3-ubyte": idx(TRAIN),
    "train-labels-idx1-ubyte": idx(TRAIN_LABELS),
    "t10k-images-idx3-ubyte": idx(TEST),
    "t10k-labels-idx1-ubyte": idx(TEST_LABELS),
}


def packed(contents):
    return {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}


def assert_is_the_set(spec):
    assert spec.source == "idx" and spec.image_shape == (6, 8, 1) and spec.file_bits == 8
    assert_same(parts(spec), (TRAIN[..., np.newaxis], TEST[..., np.newaxis]))


@pytest.mark.parametrize("contents", [MNIST_FILES, MNIST_FILES | packed(MNIST_FILES), packed(MNIST_FILES)])
def test_both_parts_of_idx_files_and_their_labels(contents, tmp_path):
    spec = own_images(write_files(tmp_path, contents), labels=True, num_classes=4)
    for part, labels in (("train", TRAIN_LABELS), ("test", TEST_LABELS)):
        np.testing.assert_array_equal(load_split(spec, part).labels, labels)
    assert own_images(tmp_path, labels=True).num_classes == 3
    # Labels are not needed, and a name of another source does not matter where there is one set.
    write_files(tmp_path, {"readme.txt": b"train images", "train-labels-idx1-ubyte": b"damaged"})
    assert_is_the_set(own_images(tmp_path, source_name="mnist"))


def test_one_of_several_sets_by_its_name(tmp_path):
    other = {name: idx(random_pixels(3, 5, 5)) for name in MNIST_FILES if "images" in name}
    for name, contents in (("emnist-letters", MNIST_FILES), ("emnist-digits", other)):
        write_files(tmp_path, {f"{name}-{file.replace('t10k', 'test')}": data for file, data in contents.items()})
    assert_is_the_set(own_images(tmp_path, source_name="emnist-letters"))
    assert own_images(tmp_path, source_name="emnist-digits").image_shape == (5, 5, 1)
    refuses(f"{tmp_path}: one file must be the train .*data.source_name", own_images, tmp_path, source_name="kmnist")


PACKED, NAME = gzip.compress(idx(TRAIN), mtime=0), "train-images-idx3-ubyte"
# What comes behind unpacks to 300 MB: no more is unpacked than the header says.
BOMB = PACKED + gzip.compress(bytes(30_000_000)) * 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (NAME, idx(TRAIN)[:-1]),
        (NAME, idx(TRAIN) + b"\0"),
        (NAME, idx(TRAIN)[:4] + b"\xff" * 12 + bytes(99)),
        (NAME, b"\0\0\x0d" + idx(TRAIN)[3:]),
        (f"{NAME}.gz", PACKED[:-9]),
        (f"{NAME}.gz", BOMB),
    ],
)
def test_damaged_idx_files_are_refused(name, content, tmp_path):
    test_part = {file: content for file, content in MNIST_FILES.items() if "t10k" in file}
    write_files(tmp_path, test_part | {name: content})
    tracemalloc.start()
    try:
        refuses(f"^{tmp_path / name}: ", lambda: load_split(own_images(tmp_path), "train"))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


LETTERS = np.random.default_rng(0).uniform(size=(3, 28, 28))
# An image is a column, its pixels one column of the image after the other.
COLUMNS = np.stack([letter.ravel(order="F") for letter in LETTERS], axis=1)


@pytest.fixture
def chardata(tmp_path):
    scipy.io.savemat(tmp_path / "chardata.mat", {"data": COLUMNS, "testdata": COLUMNS[:, 1:], "target": np.eye(3)})
    return tmp_path / "chardata.mat"


def load_letters(path, split="train", **changes):
    return load_split(dataclasses.replace(data_spec("omniglot"), path=str(path), **changes), split)


def test_letters_stand_upright(chardata):
    train = load_letters(chardata)
    np.testing.assert_array_equal(train.images, np.floor(LETTERS * 255)[..., np.newaxis])
    np.testing.assert_array_equal(load_letters(chardata.parent, "test").images, train.images[1:])


def test_what_is_not_the_set_of_letters_is_refused(chardata):
    with pytest.raises(ValueError, match=f"data.labels = True: mat {chardata} has 0 classes; set --config.data.labels"):
        load_letters(chardata, labels=True)
    whole = chardata.read_bytes()
    for contents in (
        {"testdata": COLUMNS},
        {"data": np.where(COLUMNS == COLUMNS.max(), np.nan, COLUMNS)},
        {"data": COLUMNS * 1j},
        {"data": scipy.sparse.csc_matrix(COLUMNS)},
        *(whole[:kept] for kept in (0, 130, 2000)),
        b"Dear diary,\n" * 200,
    ):
        if isinstance(contents, dict):
            scipy.io.savemat(chardata, contents)
        else:
            chardata.write_bytes(contents)
        refuses(f"^{chardata}: can't be read as the chardata.mat of Burda et al.", load_letters, chardata)
    chardata.unlink()
    refuses("chardata.mat: no such file", load_letters, chardata.parent, error=FileNotFoundError)
