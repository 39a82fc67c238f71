import itertools
import os
import pathlib
import types

import numpy as np
import pytest
import tifffile
from PIL import Image

from nvae_tf.data.picture_folder import pictures_for_model
from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.pipeline import training_batches
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.outliers import load_image_sets
from tests.data.picture_factory import own_images, random_pixels, stored_pixels
from tests.tiny_model import assert_same

STACK = random_pixels(6, 40, 48, dtype=np.uint16) >> 4
SERIES, FLOATS, COLOR = STACK.reshape(2, 3, 40, 48), (STACK / 7).astype(np.float32), random_pixels(6, 40, 48, 3)


def tiff(path, array, **options):
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, array, **options)
    return path


def images_of(path, **settings):
    spec = own_images(path, source="tiff", **settings)
    return np.rint(pictures_for_model(path, spec)[0] * (2 ** max(8, spec.num_bits) - 1))


def assert_refused(path, message, **settings):
    with pytest.raises(BadPicture, match=f"^{path}[:,] .*{message}") as caught:
        images_of(path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}])
def test_pages_of_every_layout_are_images(layout, compression, tmp_path):
    how = {"compression": compression} | layout
    deep = tiff(tmp_path / "a.tif", STACK, predictor=compression is not None, byteorder=">", bigtiff=True, **how)
    plain = tiff(tmp_path / "b.tif", COLOR, photometric="rgb", metadata=None, **how)
    split = tiff(tmp_path / "c.tif", COLOR.transpose(0, 3, 1, 2), photometric="rgb", planarconfig="separate", **how)
    assert_same([images_of(deep, num_bits=12), images_of(plain), images_of(split)], [STACK[..., None], COLOR, COLOR])


@pytest.mark.parametrize(
    ("axes", "options", "setting", "expected"),
    [
        ("TCYX", {"imagej": True}, "auto", np.moveaxis(SERIES, 1, -1)),
        ("CTYX", {"ome": True, "compression": "zlib"}, "auto", np.moveaxis(SERIES, 0, -1)),
        ("TZYX", {"ome": True}, "pages", STACK[..., np.newaxis]),
        ("CZYX", {"ome": True}, "channels", np.moveaxis(STACK, 0, -1)[np.newaxis]),
        ("QCYX", {"photometric": "rgb"}, "auto", np.moveaxis(SERIES, 1, -1)),
        ("QQYX", {"photometric": "minisblack"}, "channels", np.moveaxis(STACK, 0, -1)[np.newaxis]),
    ],
)
def test_axes_are_those_of_the_file_or_as_set(axes, options, setting, expected, tmp_path):
    path = tiff(tmp_path / "a.tif", SERIES, metadata={"axes": axes}, **options)
    assert_same([images_of(path, num_bits=12, tiff_axes=setting)], [expected])


@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_crops_are_drawn_for_training_and_lie_on_a_grid_for_testing(how, tmp_path):
    # A value tells where it is.
    large = np.arange(40 * 48, dtype=np.uint16).reshape(1, 40, 48) + np.array([0, 2000], np.uint16)[:, None, None]
    files = [tiff(tmp_path / part / "a.tif", large, **how) for part in ("train", "test")]
    spec = own_images(tmp_path, source="tiff", num_bits=12, crop="random", height=16, width=20)
    train, test = (load_split(spec, part) for part in ("train", "test"))
    corners = itertools.product([0, 2000], [0, 16], [0, 20])
    assert stored_pixels(test)[:, 0, 0, 0].tolist() == [first + 48 * top + left for first, top, left in corners]
    drawn = [np.rint(batch * 4095) for batch in training_batches(train, spec, train.count, 3).take(30)]
    assert_same(drawn[7:], [np.rint(batch * 4095) for batch in training_batches(train, spec, 8, 3, 7).take(23)])
    crops = np.concatenate(drawn)[..., 0]
    assert (crops - crops[:, :1, :1] == np.arange(16)[:, None] * 48 + np.arange(20)).all()
    tops, lefts = np.divmod(crops[:, 0, 0] % 2000, 48)
    assert {*tops} == {*range(25)} and {*lefts} == {*range(29)}
    assert_refused(files[0], "smaller than crops of 41x20", num_bits=12, crop="random", height=41, width=20)


def test_files_are_open_only_while_they_are_read(tmp_path):
    files = [tiff(tmp_path / part / "a.tif", STACK, compression="zlib") for part in ("train", "test")]
    load_split(own_images(tmp_path, source="tiff", num_bits=12), "test").read(np.arange(6))
    is_open = {str(path.readlink()) for path in pathlib.Path("/proc/self/fd").iterdir() if os.path.lexists(path)}
    assert not is_open & {*map(str, files)}


def test_a_crop_reads_no_tile_that_it_does_not_need(tmp_path):
    path = [tiff(tmp_path / x / "a.tif", STACK[:1], compression="zlib", tile=(16, 16)) for x in ("train", "test")][1]
    with tifffile.TiffFile(path) as file:
        tiles, content = file.pages[0].dataoffsets, bytearray(path.read_bytes())
    for start in tiles[1:-1]:
        content[start : start + 9] = b"\xff" * 9
    path.write_bytes(content)
    source = load_split(own_images(tmp_path, source="tiff", num_bits=12, crop="random", height=16), "test")
    assert_same([source.read(np.array([0]))[0, ..., 0]], [STACK[0, :16, :16]])
    with pytest.raises(BadPicture, match=f"^{path}: page 0: damaged, cut off"):
        source.read(np.array([1]))


@pytest.mark.parametrize(
    ("array", "options", "settings", "message"),
    [
        (SERIES, {"ome": True, "metadata": {"axes": "TZYX"}}, {}, "both time and depth .*tiff_axes=pages"),
        (FLOATS, {}, {}, "has float32 values; .* --config.data.range=LOW,HIGH"),
        (np.where(FLOATS > 500, np.nan, FLOATS), {}, {"range": (0, 600)}, "image 0: has NaN"),
        (np.where(FLOATS > 500, np.inf, FLOATS), {}, {"range": (0, 600)}, "image 0: has NaN .* or infinite"),
        (FLOATS + 1j, {}, {"range": (0, 600)}, "has complex64 values"),
        (STACK, {}, {"num_bits": 11}, "data.num_bits = 11 go to 2047; set it to 12"),
        (STACK, {}, {"channels": 3, "num_bits": 12}, "has 1 channels, but data.channels is 3"),
        (STACK.repeat(6, 0), {}, {"tiff_axes": "channels"}, "has 36 channels, more than 32; .*tiff_axes=pages"),
        (STACK, {}, {"max_pixels": 1000}, "has 1,920 pixels, more than data.max_pixels = 1,000; .*crop=random"),
        (STACK, {"photometric": "miniswhite"}, {}, "a form that is not read .*MINISWHITE.*save it as gray or RGB"),
    ],
)
def test_what_needs_a_setting_is_refused_with_it(array, options, settings, message, tmp_path):
    assert_refused(tiff(tmp_path / "a.tif", array, **options), message, **settings)


def test_pages_of_another_file_are_not_taken_for_those_of_this_one(tmp_path):
    pages = [f'<TiffData FirstC="{c}"><UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>' for c in range(2)]
    form = 'DimensionOrder="XYCZT" Type="uint16" SizeX="48" SizeY="40" SizeC="2" SizeZ="1" SizeT="1"'
    for number in range(2):
        xml = f'<OME UUID="urn:uuid:{number}"><Image><Pixels {form}>{"".join(pages)}</Pixels></Image></OME>'
        path = tiff(tmp_path / f"{number}.ome.tif", STACK[number], description=xml, metadata=None)
    assert_refused(path, "pages are in other files", channels=2, num_bits=12)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_damaged_files_and_missing_codecs_are_named(compression, tmp_path):
    path = tiff(tmp_path / "a.tif", STACK, compression=compression)
    whole = path.read_bytes()
    for part in (0.001, 0.3, 0.9, 0.999):
        path.write_bytes(whole[: int(part * len(whole))])
        assert_refused(path, "", num_bits=12)
    Image.fromarray(COLOR[0]).save(path, compression="tiff_lzw")
    assert_refused(path, "requires the 'imagecodecs' package")


def test_outliers_have_the_crops_of_the_data_and_resized_images_are_whole(tmp_path):
    spec = own_images(tiff(tmp_path / "a.tif", STACK), source="tiff", num_bits=12, crop="random", height=16)
    trained = types.SimpleNamespace(model=types.SimpleNamespace(outlier_calibration=None))
    task = types.SimpleNamespace(trained=trained, spec=spec, split="test", source=None)
    _, (source, _) = load_image_sets(task, [str(tmp_path)])
    assert_same([source.read(np.arange(36))[:2, ..., 0]], [np.stack([STACK[0, :16, :16], STACK[0, :16, 16:32]])])
    assert pictures_for_model(tmp_path, spec, resize="crop")[0].shape == (6, 16, 16, 1)
