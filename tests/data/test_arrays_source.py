"""Images in .npy and .npz files: where both parts come from, types and shapes, and what is refused."""

import dataclasses
import io
import zipfile
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import holds_out, load_split
from tests.data.picture_factory import own_images, random_pixels, stored_pixels

IMAGES = random_pixels(30, 5, 6, 3)
OTHERS = random_pixels(4, 5, 6, 3, seed=1)


def saved(path, array):
    np.save(path, array)
    return path


def parts(spec):
    return tuple(stored_pixels(load_split(spec, split)) for split in ("train", "test"))


def assert_refused(path, message, **settings):
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as caught:
        load_split(own_images(path, **settings), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "form", "expected"),
    [
        (IMAGES, (5, 6, 3, 8), IMAGES),
        (IMAGES[..., 0], (5, 6, 1, 8), IMAGES[..., :1]),
        (IMAGES[..., :1], (5, 6, 1, 8), IMAGES[..., :1]),
        (IMAGES[..., :2], (5, 6, 2, 8), IMAGES[..., :2]),
        (random_pixels(30, 5, 6, 4), (5, 6, 4, 8), random_pixels(30, 5, 6, 4)),
        (IMAGES > 99, (5, 6, 3, 8), (IMAGES > 99) * 255),
        (IMAGES[..., 1] > 99, (5, 6, 1, 8), (IMAGES[..., 1:2] > 99) * 255),
        (IMAGES.astype(np.uint16) * 256 + 255, (5, 6, 3, 16), IMAGES),
        (IMAGES[..., 2].astype(np.uint16) * 256 + 128, (5, 6, 1, 16), IMAGES[..., 2:]),
        (np.asfortranarray(IMAGES), (5, 6, 3, 8), IMAGES),
        (IMAGES[::-1, ::-1], (5, 6, 3, 8), IMAGES[::-1, ::-1]),
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


def test_what_is_held_out_is_seeded(tmp_path):
    spec = own_images(saved(tmp_path / "images.npy", IMAGES))
    first, again, other = parts(spec), parts(spec), parts(dataclasses.replace(spec, split_seed=1))
    np.testing.assert_array_equal(first[1], again[1])
    assert len(first[1]) == len(other[1]) == 3 and (first[1] != other[1]).any() and holds_out(spec)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("train", "test"), {}),
        (("x_train", "x_test"), {}),
        (("a", "b"), {"train_split": "a", "test_split": "b"}),
    ],
)
def test_both_parts_in_one_file(names, settings, tmp_path):
    labels = {"y_train": np.arange(30), "y_test": np.arange(4)}
    np.savez(tmp_path / "set.npz", **dict(zip(names, (IMAGES, OTHERS), strict=True)), **labels)
    spec = own_images(tmp_path / "set.npz", **settings)
    assert not holds_out(spec)
    train, test = parts(spec)
    np.testing.assert_array_equal(train, IMAGES)
    np.testing.assert_array_equal(test, OTHERS)


def test_images_beside_labels_are_found(tmp_path):
    np.savez(tmp_path / "set.npz", digits=IMAGES[..., 0], labels=np.arange(30), one_hot=np.eye(30))
    train, test = parts(own_images(tmp_path / "set.npz"))
    assert (train.shape, test.shape) == ((27, 5, 6, 1), (3, 5, 6, 1)) and holds_out(own_images(tmp_path / "set.npz"))


def test_a_folder_with_a_file_for_each_part(tmp_path):
    saved(tmp_path / "train.npy", IMAGES)
    saved(tmp_path / "test.npy", OTHERS)
    spec = own_images(tmp_path)
    assert spec.source == "arrays" and not holds_out(spec)
    train, test = parts(spec)
    np.testing.assert_array_equal(train, IMAGES)
    np.testing.assert_array_equal(test, OTHERS)


def test_images_are_cut_scaled_and_converted(tmp_path):
    spec = own_images(saved(tmp_path / "images.npy", IMAGES), crop_box=(1, 0, 5, 3))
    train, _ = parts(spec)
    whole, _ = parts(dataclasses.replace(spec, crop_box=None, height=5, width=6))
    np.testing.assert_array_equal(train, whole[:, 0:3, 1:5])
    assert parts(dataclasses.replace(spec, crop_box=None, resize="stretch", height=2, width=9))[0].shape[1:] == (
        2,
        9,
        3,
    )
    deep = saved(tmp_path / "deep.npy", IMAGES[..., 0].astype(np.uint16) << 8)
    spec = own_images(deep, convert=True, channels=3, file_bits=8)
    np.testing.assert_array_equal(np.concatenate(parts(spec)).std(axis=-1), 0)


def test_batches_have_the_values(tmp_path):
    saved(tmp_path / "train.npy", IMAGES)
    saved(tmp_path / "test.npy", OTHERS)
    spec = own_images(tmp_path, num_bits=3)
    batches = list(evaluation_batches(load_split(spec, "test"), spec, batch_size=3, seed=0))
    np.testing.assert_array_equal(np.concatenate(batches), (OTHERS >> 5).astype(np.float32) / np.float32(7))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES.transpose(0, 3, 1, 2), r"\[30, 3, 5, 6\] seems to have its channels first.*transpose\(0, 2, 3, 1\)"),
        (IMAGES / 255, r"of type float64; .* From floats in \[0, 1\]: numpy.round\(images \* 255\).astype\('uint8'\)"),
        (IMAGES.astype(np.int64), r"of type int64; images are uint8 \(0 to 255\), uint16"),
        (random_pixels(30, 5, 6, 7), r"shape \[30, 5, 6, 7\] is not \[count, height, width, channels\] with 1 to 4"),
        (random_pixels(0, 5, 6, 3), r"shape \[0, 5, 6, 3\] is not"),
        (random_pixels(2, 2, 5, 6, 3), r"shape \[2, 2, 5, 6, 3\] is not"),
        (random_pixels(5, 6), r"the array's shape \[5, 6\] is not \[count, height, width, channels\] with"),
        (random_pixels(5, 6, 3), r"\[5, 6, 3\] seems to be a single image; a set of images has one axis more"),
        (IMAGES[:1], "1 image can't be divided into a training and a test part: add more images"),
        (np.array([{}, None], object), "not a complete NumPy file of plain numbers .*numpy.save writes one"),
    ],
)
def test_wrong_arrays_are_refused(array, message, tmp_path):
    assert_refused(saved(tmp_path / "images.npy", array), message)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": IMAGES, "b": OTHERS}, "has the arrays a, b; .* two that are called train and test .*data.train_split"),
        ({"train": IMAGES, "validation": OTHERS}, "has the arrays train, validation; .*data.test_split"),
        ({"labels": np.arange(3)}, r"the array's shape \[3\] is not \[count, height, width"),
        ({"images": np.array([{}, None], object)}, "or one with Python objects"),
    ],
)
def test_wrong_contents_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    assert_refused(tmp_path / "set.npz", message)


@pytest.mark.parametrize("kept", [0, 5, 60, 127, 200, 2000])
def test_damaged_files_are_refused(kept, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    np.savez(tmp_path / "set.npz", images=IMAGES)
    for name in ("images.npy", "set.npz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
        assert_refused(tmp_path / name, "not a complete NumPy file of plain numbers")


def test_text_and_a_damaged_archive_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("Dear diary")
    assert_refused(tmp_path / "text.npy", "not a complete NumPy file of plain numbers")
    np.savez(tmp_path / "set.npz", images=IMAGES)
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[1500] ^= 0x55
    (tmp_path / "set.npz").write_bytes(content)
    assert_refused(tmp_path / "set.npz", "a damaged .npz file")


def header_bytes(*shape, dtype="|u1"):
    """The header of an array in NumPy's format."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(path, **contents):
    """A `.npz` file of entries `{name: bytes}`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


UNTRUE_HEADERS = {
    "-1": header_bytes(-1, 5, 6, 3) + IMAGES.tobytes(),
    "two of -1": header_bytes(-30, 5, -6, 3) + IMAGES.tobytes(),
    "10^15 bytes": header_bytes(10**10, 1000, 100) + IMAGES.tobytes(),
    "beyond all numbers": header_bytes(10**90, 28, 28) + IMAGES.tobytes(),
    "more images": header_bytes(31, 5, 6, 3) + IMAGES.tobytes(),
    "fewer images": header_bytes(29, 5, 6, 3) + IMAGES.tobytes(),
    "narrower images": header_bytes(30, 5, 5, 3) + IMAGES.tobytes(),
    "3 GB of header": b"\x93NUMPY\x02\x00" + (3 * 10**9).to_bytes(4, "little") + bytes(10**6),
    "a nested header": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
}


@pytest.mark.parametrize("claim", UNTRUE_HEADERS)
def test_headers_that_are_not_true_are_refused(claim, tmp_path):
    content = UNTRUE_HEADERS[claim]
    (tmp_path / "images.npy").write_bytes(content)
    assert_refused(tmp_path / "images.npy", "not a complete NumPy file of plain numbers")
    archive(tmp_path / "set.npz", **{"images.npy": content})
    assert_refused(tmp_path / "set.npz", "a damaged .npz file, or one with Python objects .images.npy: ")


def test_what_is_not_wanted_may_be_anything(tmp_path):
    """A text, Python objects, damaged arrays."""
    objects, images, others = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([{}, None], object))
    np.save(images, IMAGES)
    np.save(others, OTHERS)
    beside = {"readme.txt": "Dear diary", "names.npy": objects.getvalue(), "labels.npy": header_bytes(30) + b"cut off"}
    train, test = parts(own_images(archive(tmp_path / "one.npz", **beside, **{"images.npy": images.getvalue()})))
    assert len(train) + len(test) == len(IMAGES)
    beside["notes.npy"] = "not even an array"
    both = {"x_train.npy": images.getvalue(), "x_test.npy": others.getvalue()}
    train, test = parts(own_images(archive(tmp_path / "both.npz", **beside, **both)))
    np.testing.assert_array_equal(train, IMAGES)
    np.testing.assert_array_equal(test, OTHERS)
    saved(tmp_path / "train.npy", IMAGES)
    saved(tmp_path / "test.npy", OTHERS)
    (tmp_path / "labels.npy").write_text("Dear diary")
    np.testing.assert_array_equal(parts(own_images(tmp_path))[1], OTHERS)


def test_where_a_damaged_array_may_be_the_wanted_one_the_file_is_refused(tmp_path):
    images = io.BytesIO()
    np.save(images, IMAGES)
    archive(tmp_path / "set.npz", **{"a.npy": images.getvalue(), "b.npy": b"Dear diary"})
    assert_refused(tmp_path / "set.npz", r"a damaged .npz file, .* \(b.npy: ")
    archive(tmp_path / "text.npz", **{"readme.txt": "Dear diary"})
    assert_refused(tmp_path / "text.npz", r"has the arrays \(none\); there must be one")


def test_a_locked_archive_is_refused(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES)
    content = bytearray((tmp_path / "set.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "set.npz").write_bytes(content)
    assert_refused(tmp_path / "set.npz", "not a complete NumPy file .*encrypted")


def test_an_array_with_a_damaged_name_is_not_passed_over(tmp_path):
    """Without it the other one would be taken for the whole set, and divided."""
    np.savez(tmp_path / "set.npz", x_train=IMAGES, x_test=OTHERS)
    content = (tmp_path / "set.npz").read_bytes()
    at = content.rindex(b"x_test.npy")
    (tmp_path / "set.npz").write_bytes(content[:at] + b"x_test.np\r" + content[at + 10 :])
    assert_refused(tmp_path / "set.npz", "not a complete NumPy file .*differ")


def test_more_than_the_memory_is_not_unpacked(monkeypatch, tmp_path):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros_like(IMAGES))
    spec = own_images(tmp_path / "set.npz")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * IMAGES.size - 1))
    with pytest.raises(ValueError, match="set.npz: its images need .* GB of memory, .* are free: numpy.save them as"):
        load_split(spec, "train")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * IMAGES.size))
    assert load_split(spec, "train").count == 27


def test_images_of_another_form_than_was_said_are_refused(tmp_path):
    path = saved(tmp_path / "images.npy", IMAGES)
    deep = saved(tmp_path / "deep.npy", IMAGES.astype(np.uint16))
    assert_refused(path, "the images have 8 bits a channel, but data.file_bits is 16: set it to 8", file_bits=16)
    assert_refused(deep, "the images have 16 bits a channel, but data.file_bits is 8: set it to 16", file_bits=8)
    assert_refused(path, "have 3 channels, but data.channels is 1; --config.data.convert=True", channels=1)
    assert_refused(path, "each image is 5x6 .*, not 8x8: .*--config.data.resize=crop", height=8)


def test_a_test_part_of_another_size_is_refused(tmp_path):
    saved(tmp_path / "train.npy", IMAGES)
    saved(tmp_path / "test.npy", OTHERS[:, :4])
    spec = own_images(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}: each image is 4x6 .*, not 5x6"):
        load_split(spec, "test")
