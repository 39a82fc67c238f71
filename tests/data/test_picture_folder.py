import dataclasses
import os

import numpy as np
import pytest

import nvae_tf
from nvae_tf.data import data_spec
from nvae_tf.data.picture_folder import pictures_for_model
from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import held_out, holds_out, load_split
from nvae_tf.progress import Report
from tests import refuses
from tests.data.picture_factory import (
    damaged_in_the_middle,
    encoded,
    own_images,
    png,
    random_pixels,
    stored_pixels,
    values_and_labels,
    write_files,
    write_numbered,
)

HEIGHT, WIDTH = 6, 9
RGB = [random_pixels(HEIGHT, WIDTH, 3, seed=seed) for seed in range(6)]


def parts(spec):
    """Which pictures of `write_numbered` are for training, and which for testing."""
    return tuple(stored_pixels(load_split(spec, split))[:, 0, 0, 0].tolist() for split in ("train", "test"))


def train_and_test(folder, **bad):
    """Six good pictures for training and two for testing; `b`, a bad one, in the middle of the former."""
    contents = {f"train/{letter}.png": png(pixels) for letter, pixels in zip("acdefg", RGB, strict=True)}
    contents |= {f"test/{number}.png": png(RGB[number]) for number in range(2)}
    return write_files(folder, contents | {f"train/{name}.png": content for name, content in bad.items()})


def test_folders_are_classes(tmp_path):
    for part, first in (("train", 10), ("test", 30)):
        write_numbered(tmp_path / part / "dogs" / "small", 2, first=first)
        write_numbered(tmp_path / part / "cats", 3, first=first + 10)
    spec = own_images(tmp_path, labels=True)
    train, test = values_and_labels(spec)
    assert train == ([20, 21, 22, 10, 11], [0, 0, 0, 1, 1]) and test == ([40, 41, 42, 30, 31], [0, 0, 0, 1, 1])
    assert load_split(spec, "test").class_names == ("cats", "dogs") and spec.num_classes == 2
    # The classes are those for training, and pictures that are skipped take their labels with them.
    write_files(tmp_path, {"train/ants/1.png": b"text", "train/cats/021.png": b"text"})
    skipping = own_images(tmp_path, labels=True, on_bad_file="skip", cache=str(tmp_path / "cache"))
    names = [f"{tmp_path}/train/{name}.png" for name in "cats/020 cats/022 dogs/small/010 dogs/small/011".split()]
    for _ in range(2):
        assert values_and_labels(skipping) == [([20, 22, 10, 11], [1, 1, 2, 2]), (test[0], [1, 1, 1, 2, 2])]
        assert load_split(skipping, "train").names() == names
        assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("folder", ["", "train"])
def test_folders_are_classes_where_a_part_is_held_out(folder, tmp_path):
    for number, name in enumerate("abc"):
        write_numbered(tmp_path / folder / name, 10, first=10 * number)
    train, test = values_and_labels(own_images(tmp_path, labels=True, test_fraction=0.5))
    assert sorted(train[0] + test[0]) == list(range(30))
    for values, labels in (train, test):
        assert labels == [value // 10 for value in values]


def test_pictures_without_a_class_are_refused(tmp_path):
    write_numbered(tmp_path / "train" / "cats", 2)
    write_numbered(tmp_path / "test" / "dogs", 2)
    refuses(f"data.labels = True: folder {tmp_path} has 1 classes; set", own_images, tmp_path, labels=True)
    spec = own_images(write_numbered(tmp_path / "train" / "dog", 2).parents[1], labels=True)
    refuses(f"{tmp_path}: the training part lacks classes of the test part: dogs$", load_split, spec, "test")
    write_numbered(tmp_path / "train", 1)
    refuses("train/000.png: .* is in no folder of a class", own_images, tmp_path, labels=True)


def test_a_part_is_held_out_where_there_are_no_such_folders(tmp_path):
    # A sole folder called train is divided, too.
    spec = own_images(write_numbered(tmp_path / "train", 40).parent, test_fraction=0.25)
    train, test = parts(spec)
    assert len(test) == 10 and sorted(train + test) == list(range(40)) and holds_out(spec)
    assert train == sorted(train) and test == sorted(test)
    assert parts(spec) == (train, test)
    assert parts(dataclasses.replace(spec, split_seed=1))[1] != test


def test_few_images_change_sides_when_some_are_added():
    names = [f"holiday/{number:04d}.jpg" for number in range(1000)]
    more = sorted([*names, *(f"garden/{number:04d}.jpg" for number in range(50))])
    (_, before), (_, after) = held_out(names, data_spec("own_images")), held_out(more, data_spec("own_images"))
    assert (len(before), len(after)) == (100, 105)
    assert len({names[number] for number in before} ^ ({more[number] for number in after} & {*names})) <= 10
    # Both parts have an image at least.
    for count, fraction, held in ((2, 0.1, 1), (3, 0.99, 2)):
        spec = dataclasses.replace(data_spec("own_images"), test_fraction=fraction)
        assert list(map(len, held_out(names[:count], spec))) == [count - held, held]
    refuses("one image can't be divided", held_out, ["a.png"], spec)


@pytest.mark.parametrize(("present", "missing", "other"), [("val", "test", "train"), ("training", "train", "test")])
def test_a_part_under_another_name_is_not_guessed(present, missing, other, tmp_path):
    for folder in (present, other):
        write_numbered(tmp_path / folder, 2)
    message = f"{tmp_path} has the sub-folders .*, but no '{missing}': .*data.{missing}_split"
    refuses(message, own_images, tmp_path)
    assert parts(own_images(tmp_path, **{f"{missing}_split": present})) == ([0, 1], [0, 1])


FORM = {"convert": False}
DEEP, LARGE, SMALL = random_pixels(6, 9, 3, dtype=np.uint16), random_pixels(20, 30, 3), random_pixels(4, 4, 3)
BAD_FILES = {
    "other channels": (png(RGB[0][..., :1]), FORM, "has 1 channels, but data.channels is 3; --"),
    "16 bits": (png(DEEP), FORM, "has 16 bits, but data.file_bits"),
    "another size": (png(RGB[0].swapaxes(0, 1)), {}, r"is 9x6 \(height x width\), not 6x9: --config.data.resize=crop"),
    "smaller than the box": (png(SMALL), {"crop_box": (1, 1, 6, 5)}, "is 4x4 .*: make the box"),
    "cut off": (encoded(RGB[0], "JPEG")[:-40], {}, "a damaged or cut-off JPEG file"),
    "text": (b"Dear diary", {}, "not a picture"),
    "too many pixels": (png(LARGE), {"max_pixels": 599}, "is 20x30 .*, 600 pixels, .* scale it"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_picture_that_cannot_be_used_is_named_with_the_fix_or_skipped(kind, tmp_path):
    bad, settings, message = BAD_FILES[kind]
    spec = own_images(train_and_test(tmp_path, b=bad), **settings)
    path = tmp_path / "train" / "b.png"
    said = refuses(f"^{path}: {message}", load_split, spec, "train")
    assert "Fix or remove the file, or leave such files out with --config.data.on_bad_file=skip" in said
    assert "\n" not in said
    assert load_split(spec, "test").count == 2
    kept = []
    source = load_split(dataclasses.replace(spec, on_bad_file="skip"), "train", Report(print=kept.append))
    left, top, right, bottom = settings.get("crop_box", (0, 0, WIDTH, HEIGHT))
    np.testing.assert_array_equal(stored_pixels(source), np.stack(RGB)[:, top:bottom, left:right])
    (text,) = kept
    assert text.startswith(f"Skipped 1 of 7 pictures of the train part of {tmp_path}:\n    {path}: ")


BACKGROUNDS = {"drop": None, "black": [0], "white": [255], "#0080ff": [0, 128, 255]}


@pytest.mark.parametrize("channels", [4, 2])
@pytest.mark.parametrize("alpha", BACKGROUNDS)
def test_alpha_is_dropped_or_laid_on_a_color(channels, alpha, tmp_path):
    background = BACKGROUNDS[alpha]
    pixels = random_pixels(30, HEIGHT, WIDTH, channels)
    pixels[:10, ..., -1:] = np.array([0, 255])[np.arange(10) % 2][:, None, None, None]
    opacity = 1.0 if background is None else pixels[..., -1:] / 255
    if background and channels == 2:
        background = np.array([[0.299, 0.587, 0.114]]) @ np.resize(background, 3)
    expected = pixels[..., :-1] * opacity + (1 - opacity) * np.array(background or 0)
    for part, numbers in (("train", slice(20)), ("test", slice(20, 30))):
        write_files(tmp_path / "folder" / part, {f"{n:02d}.png": png(image) for n, image in enumerate(pixels[numbers])})
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.save(tmp_path / "arrays" / f"{part}.npy", pixels[numbers])
    for place in (tmp_path / "folder", tmp_path / "arrays"):
        spec = own_images(place, alpha=alpha, convert=False)
        assert spec.channels == channels - 1
        images = [stored_pixels(load_split(spec, split)) for split in ("train", "test")]
        np.testing.assert_allclose(np.concatenate(images), expected, atol=1.01)
        if place.name == "folder":
            loaded = pictures_for_model(place / "test", spec)[0]
            np.testing.assert_array_equal(np.rint(loaded * 255), images[1])


def test_what_pillow_says_of_a_chunk_is_text(tmp_path):
    content = png(random_pixels(40, 40, 3))
    place = content.index(b"IDAT") + 300
    write_files(tmp_path, {"a.png": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]})
    refuses(r"a damaged or cut-off PNG file \(.* 'IDAT'", nvae_tf.load_images, tmp_path, nvae_tf.ModelConfig())


def test_what_is_converted_is_said_in_one_line(tmp_path):
    others = {"gray": png(RGB[0][..., :1]), "x": png(random_pixels(HEIGHT, WIDTH, 3, dtype=np.uint16))}
    spec, kept = own_images(train_and_test(tmp_path, **others)), []
    assert load_split(spec, "train", Report(print=kept.append)).count == 8 and spec.channels == 3
    assert kept == ["Converted 2 of 8 train pictures to 3 channels, 8 bits"]


@pytest.mark.parametrize("cache", [False, True])
def test_gray_of_16_bits_keeps_them(cache, tmp_path):
    gray = random_pixels(8, HEIGHT, WIDTH, 1, dtype=np.uint16) >> 4
    files = {f"{number}.png": png(image) for number, image in enumerate(gray)}
    spec = own_images(write_files(tmp_path / "x", files), num_bits=12, cache=str(tmp_path / "cache") if cache else None)
    expected = np.delete(gray, held_out([*files], spec)[1], axis=0)
    np.testing.assert_array_equal(stored_pixels(load_split(spec, "train")), expected)
    np.save(tmp_path / "all.npy", gray[1:3])
    images, names = pictures_for_model([tmp_path / "x" / "0.png", tmp_path / "all.npy"], spec)
    np.testing.assert_array_equal(images * 4095, gray[:3])
    assert names == ["0.png", "all_00000", "all_00001"]
    # The mean of equal pixels is theirs.
    files = {name: png(np.full_like(gray[0], number + 1234)) for number, name in enumerate(files)}
    half = dataclasses.replace(spec, resize="stretch", height=3, width=3)
    means = pictures_for_model(write_files(tmp_path / "x", files), half)[0] * 4095
    np.testing.assert_array_equal(means[:, 0, 0, 0], np.arange(8) + 1234)
    others = (gray[0] << 4, "set it to 16"), (RGB[0][..., :1], "has 8 bits"), (gray[0].repeat(3, 2), "of color")
    for image, message in others:
        path = write_files(tmp_path, {"other.png": png(image)}) / "other.png"
        with pytest.raises(BadPicture, match=f"other.png: .*{message}"):
            pictures_for_model(path, dataclasses.replace(spec, channels=image.shape[2]))


def test_a_folder_of_nothing_but_bad_pictures_is_an_error(tmp_path):
    write_files(tmp_path, {f"{number}.png": b"text" for number in range(4)})
    refuses(f"{tmp_path}/.*: not a picture.*Fix or remove the file", own_images, tmp_path)
    spec = own_images(tmp_path, on_bad_file="skip", height=6, width=9, channels=3, file_bits=8)
    refuses(f"{tmp_path}: none of 3 pictures .*; the first: {tmp_path}", load_split, spec, "train")


def gray(*size, seed=0):
    return png(random_pixels(*size, 1, seed=seed))


@pytest.mark.parametrize(
    "changes",
    [{"num_bits": 1, "binarize": True}, {"crop_box": (1, 0, 9, 7), "resize": "stretch", "height": 4, "width": 4}],
)
def test_a_model_sees_of_a_folder_what_training_would(tmp_path, changes):
    files = {f"test/{name}.png": png(random_pixels(8, 10, 3, seed=seed)) for seed, name in enumerate("abc")}
    write_files(tmp_path, files | {"train/x.png": png(random_pixels(8, 10, 3))})
    spec = own_images(tmp_path, **changes)
    (expected,) = evaluation_batches(load_split(spec, "test"), spec, 3, seed=5)
    images, names = pictures_for_model(tmp_path / "test", spec, seed=5)
    assert images.dtype == np.float32 and names == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(
    ("places", "arguments", "message"),
    [
        *((places, {}, "give a file or folder of pictures, or a list") for places in ([], 3)),
        *((places, {}, "'.*: no such file or folder of pictures$") for places in ("a" * 5000, "a\0b")),
        (".", {"config": "x"}, "config = .*: give model.config, or of a run"),
        *((None, {"seed": seed}, "seed of the data = .*: must be a whole number from 0") for seed in (1.5, "x", -1)),
        (None, {"resize": [1]}, r"data.resize = \[1\]: must be of type str"),
    ],
)
def test_hostile_calls_of_load_images(places, arguments, message, tmp_path):
    places = write_files(tmp_path, {"a.png": gray(4, 4)}) if "seed" in arguments or "resize" in arguments else places
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        nvae_tf.load_images(places, **{"config": nvae_tf.ModelConfig()} | arguments)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_pictures_are_loaded_as_a_run_or_a_model_sees_them(tmp_path):
    write_files(tmp_path, {"a.png": gray(30, 40), "b.png": png(random_pixels(60, 60, 3))})
    run = dataclasses.replace(data_spec("mnist"), resize="stretch", convert=True)
    images = nvae_tf.load_images(tmp_path, nvae_tf.ExperimentConfig(data=run), seed=5)
    np.testing.assert_array_equal(images, pictures_for_model(tmp_path, run, seed=5)[0])
    # Of a model alone the size and the bits are known.
    config = nvae_tf.ModelConfig(image_height=20, image_width=20, num_bits=2)
    images = nvae_tf.load_images([tmp_path / "b.png", tmp_path / "a.png"], config)
    assert images.shape == (2, 20, 20, 3) and {*np.unique(images * 3)} == {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(images[1, ..., 0], images[1, ..., 2])


IMAGES = random_pixels(100, 4, 5, 3)


@pytest.fixture
def pictures(tmp_path):
    """100 pictures for training, more than are decoded at a time, and two for testing."""
    folder = tmp_path / "pictures"
    write_files(folder, {f"train/{number:03d}.png": png(image) for number, image in enumerate(IMAGES)})
    return write_files(folder, {f"test/{number}.png": png(IMAGES[number]) for number in (7, 8)})


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "decoded" / "here"


def test_the_pictures_are_read_once(pictures, cache):
    spec = own_images(pictures, cache=str(cache))
    shown = []
    source = load_split(spec, "train", Report(lambda text, fraction: shown.append(text)))
    np.testing.assert_array_equal(stored_pixels(source), IMAGES)
    assert shown[-1] == f"decoding into {cache}: 100 of 100 images"
    for path in pictures.rglob("*.png"):
        # As many bytes, at the same time as before.
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    shown.clear()
    again = load_split(spec, "train", Report(lambda text, fraction: shown.append(text)))
    np.testing.assert_array_equal(stored_pixels(again), IMAGES)
    assert not shown
    # A damaged cache is named.
    (file,) = cache.iterdir()
    for damage in (lambda: file.write_bytes(file.read_bytes()[:-1]), lambda: np.save(file, IMAGES[:, :3])):
        damage()
        refuses(f"^{file}: ", load_split, spec, "train")


def test_a_changed_picture_is_seen(pictures, cache):
    spec = own_images(pictures, cache=str(cache))
    load_split(spec, "train")
    path = pictures / "train" / "042.png"
    before = path.stat()
    path.write_bytes(png(255 - IMAGES[42]))
    # A second later, whatever the clock of the file system.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    np.testing.assert_array_equal(stored_pixels(load_split(spec, "train"))[42], 255 - IMAGES[42])
    (pictures / "train" / "099.png").unlink()
    assert load_split(spec, "train").count == 99 and len(list(cache.iterdir())) == 3


def test_other_settings_are_other_images(pictures, cache):
    changes = [{"resize": "crop", "height": 2}, {"resize": "stretch", "height": 2, "width": 4}]
    changes += [{"crop_box": (0, 0, 3, 3)}, {"channels": 1, "convert": True}, {"alpha": "white"}]
    for number, change in enumerate(changes, 1):
        spec = own_images(pictures, **change)
        cached = dataclasses.replace(spec, cache=str(cache))
        np.testing.assert_array_equal(*(stored_pixels(load_split(each, "train")) for each in (cached, spec)))
        assert len(list(cache.iterdir())) == number
    # What is done to the pixels later makes no difference.
    load_split(dataclasses.replace(cached, num_bits=5, horizontal_flip=True), "train")
    assert len(list(cache.iterdir())) == len(changes)


def test_nothing_unfinished_is_left_after_a_failure(pictures, cache):
    bad = pictures / "train" / "090.png"
    bad.write_bytes(damaged_in_the_middle(bad.read_bytes()))
    spec = own_images(pictures, cache=str(cache))
    refuses(f"^{bad}: a damaged or cut-off PNG file", load_split, spec, "train", error=BadPicture)
    assert not list(cache.iterdir())
    skipping = dataclasses.replace(spec, on_bad_file="skip")
    np.testing.assert_array_equal(stored_pixels(load_split(skipping, "train")), np.delete(IMAGES, 90, axis=0))
