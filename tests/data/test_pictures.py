import dataclasses
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image

from nvae_tf.data import data_spec, pictures
from tests import refuses
from tests.data.picture_factory import encoded, png, png_of_chunks, random_pixels, tiff, with_palette, write_files

HEIGHT, WIDTH = 13, 18
NUMBERS = random_pixels(HEIGHT, WIDTH, seed=3) % 5
COLORS = np.array([[0, 0, 0], [250, 3, 9], [0, 200, 77], [31, 64, 128], [255, 255, 255]])
GRAYS = np.array([[0, 0, 0], [10, 10, 10], [77, 77, 77], [128, 128, 128], [255, 255, 255]])
ALPHA = np.array([0, 255, 40, 255, 200])
RGB, RGBA = random_pixels(HEIGHT, WIDTH, 3), random_pixels(HEIGHT, WIDTH, 4)
GRAY, BITS = RGB[..., :1], RGB[..., 0] > 100
# What is in the file, and the pixels that must come out.
EXACT = {
    **{f"png-{channels}": (png(RGBA[..., :channels]), RGBA[..., :channels]) for channels in (1, 2, 3, 4)},
    "png-palette": (encoded(with_palette(NUMBERS, COLORS), "PNG"), COLORS[NUMBERS]),
    "png-gray-palette": (encoded(with_palette(NUMBERS, GRAYS), "PNG"), GRAYS[NUMBERS][..., :1]),
    "png-transparent-palette": (
        encoded(with_palette(NUMBERS, COLORS), "PNG", transparency=bytes(ALPHA.tolist())),
        np.concatenate([COLORS[NUMBERS], ALPHA[NUMBERS][..., np.newaxis]], axis=-1),
    ),
    "webp-rgb": (encoded(RGB, "WEBP", lossless=True), RGB),
    "webp-rgba": (encoded(RGBA, "WEBP", lossless=True, exact=True), RGBA),
    "bmp-rgb": (encoded(RGB, "BMP"), RGB),
    "bmp-palette": (encoded(with_palette(NUMBERS, COLORS), "BMP"), COLORS[NUMBERS]),
    "gif-color": (encoded(with_palette(NUMBERS, COLORS), "GIF"), COLORS[NUMBERS]),
    **{
        f"tiff-{channels}-{order}-{packed}": (tiff(RGBA[..., :channels], order, packed), RGBA[..., :channels])
        for channels in (1, 2, 3, 4)
        for order, packed in (("<", False), (">", True))
    },
    "tiff-lzw": (encoded(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff-by-channel": (tiff(RGB, PlanarConfiguration=2), RGB),
    "tiff-white-is-0": (tiff(GRAY, PhotometricInterpretation=0), 255 - GRAY),
    "tiff-palette": (encoded(with_palette(NUMBERS, COLORS), "TIFF"), COLORS[NUMBERS]),
    **{f"{kind}-1-bit": (encoded(Image.fromarray(BITS), kind), BITS[..., None] * 255) for kind in ("PNG", "TIFF")},
}
# Smooth, as photographs are: JPEG and lossy WebP then keep it to within a few values.
SMOOTH = np.add.outer(np.arange(HEIGHT) * 6, np.arange(WIDTH) * 7).astype(np.uint8)[..., np.newaxis]
SMOOTH_RGB = np.concatenate([SMOOTH, 255 - SMOOTH, SMOOTH // 2 + 60], axis=-1)
INK = np.concatenate([SMOOTH, SMOOTH // 2, 220 - SMOOTH // 2, np.full_like(SMOOTH, 51)], axis=-1)
SECOND = [Image.fromarray(255 - RGB)]
LOSSY = {
    "jpeg-gray": (encoded(SMOOTH, "JPEG", quality=95), SMOOTH),
    "jpeg-rgb": (encoded(SMOOTH_RGB, "JPEG", quality=95, subsampling=0), SMOOTH_RGB),
    # Cyan, magenta, yellow and black ink take away red, green, blue and all of them.
    "jpeg-cmyk": (
        encoded(Image.frombytes("CMYK", (WIDTH, HEIGHT), INK.tobytes()), "JPEG", quality=95),
        (255 - INK[..., :3].astype(int)) * (255 - INK[..., 3:]) // 255,
    ),
    "webp-lossy": (encoded(SMOOTH_RGB, "WEBP", quality=95), SMOOTH_RGB),
}
# Bytes that may be missing at a file's end without any pixel missing: the end mark, a checksum, filling bytes.
WITHOUT_PIXELS = 30
CUT = ("png-1", "png-3", "webp-rgb", "webp-rgba", "bmp-rgb", "tiff-3-<-False", "tiff-3->-True", "tiff-lzw", *LOSSY)
# A palette may lie in front of few pixels.
CUT_SHORT = ("gif-color", "tiff-palette", "png-palette")


def written(folder, content, name="picture.jpg"):
    """The path of a file; its ending does not matter, as long as it is one of a picture."""
    return write_files(folder, {name: content}) / name


def pixels(path, channels):
    return np.asarray(pictures.read_picture(path, channels)).reshape(HEIGHT, WIDTH, channels)


def assert_refused(path, message, **settings):
    for read in (pictures.read_header, lambda path, **settings: pictures.read_picture(path, 3, **settings)):
        refuses(f"^{path}: {message}", read, path, **settings, error=pictures.BadPicture)


@pytest.mark.parametrize("form", [*EXACT, *LOSSY])
def test_header_and_pixels(form, tmp_path):
    content, expected = (EXACT | LOSSY)[form]
    path, channels = written(tmp_path, content), expected.shape[-1]
    assert pictures.read_header(path) == pictures.PictureHeader(HEIGHT, WIDTH, channels, 8)
    error = np.abs(pixels(path, channels).astype(int) - expected)
    if form in EXACT:
        assert not error.any()
    else:
        assert error.mean() < 3 and error.max() < 16


TIFFS = [(kind, channels) for kind in ("TIFF", "big-endian TIFF", "packed TIFF") for channels in (1, 3, 4)]


@pytest.mark.parametrize(("kind", "channels"), [*TIFFS, *(("PNG", channels) for channels in (1, 2, 3, 4))])
def test_of_16_bits_the_upper_8_are_taken(kind, channels, tmp_path):
    # Every value there is, in another order in each channel.
    values = (np.arange(2**16)[:, None] + 9973 * np.arange(channels)).astype(np.uint16).reshape(256, 256, channels)
    order, packed = ">" if kind == "big-endian TIFF" else "<", kind == "packed TIFF"
    path = written(tmp_path, png(values) if kind == "PNG" else tiff(values, order, packed))
    assert pictures.read_header(path) == pictures.PictureHeader(256, 256, channels, 16)
    found = np.asarray(pictures.read_picture(path, channels)).reshape(values.shape)
    np.testing.assert_array_equal(found, values >> 8)


def test_other_channels_on_demand(tmp_path):
    write_files(tmp_path, {"rgba.png": png(RGBA), "deep.png": png(GRAY.astype(np.uint16) << 8)})
    np.testing.assert_array_equal(pixels(tmp_path / "deep.png", 3), GRAY.repeat(3, axis=-1))
    np.testing.assert_array_equal(pixels(tmp_path / "deep.png", 2), np.insert(GRAY, 1, 255, axis=-1))
    np.testing.assert_array_equal(pixels(tmp_path / "rgba.png", 3), RGBA[..., :3])
    luminance = RGBA[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(tmp_path / "rgba.png", 1)[..., 0] - luminance).max() <= 1


def test_pictures_are_found_in_any_tree_in_order(tmp_path):
    found = ["a.png", "b/c/d.JPG", "b/c/e.webp", "b/f.bmp", "g.jpeg", "h.gif", "i.tif", "j.TIFF"]
    ignored = [".hidden.png", ".git/x.png", "b/.cache/y.png", "__MACOSX/z.jpg", "scan.psd", "png", "x.png.gz"]
    write_files(tmp_path, {name: b"" for name in (*reversed(found), *ignored)})
    # A link back into the tree leads nowhere.
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert pictures.list_pictures(tmp_path) == found
    refuses("gone: this folder can't be read", pictures.list_pictures, tmp_path / "gone")


CUTS = [(form, kept) for form in CUT for kept in (0.05, 0.6, 1.0)]
CUTS += [(form, kept) for form in CUT_SHORT for kept in (0.05, 0.3)]


@pytest.mark.parametrize(("form", "kept"), CUTS)
def test_a_cut_off_file_is_refused(form, kept, tmp_path):
    content, _ = (EXACT | LOSSY)[form]
    length = len(content) - (WITHOUT_PIXELS if form in CUT else 0)
    assert_refused(written(tmp_path, content[: int(length * kept)]), "")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_cameras_are_upright(kind, orientation, tmp_path):
    upright = np.zeros([16, 8, 3], np.uint8)
    upright[:8, :4] = (250, 20, 20)
    picture = Image.fromarray(upright)
    if orientation > 1:
        # How the camera stores what is upright only when the orientation is heeded.
        names = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270".split()
        picture = picture.transpose(Image.Transpose[names[orientation - 2]])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(tmp_path / "photo", kind, quality=95, exif=exif)
    assert pictures.read_header(tmp_path / "photo") == pictures.PictureHeader(16, 8, 3, 8)
    assert np.abs(np.asarray(pictures.read_picture(tmp_path / "photo", 3)).astype(int) - upright).mean() < 12
    # A broken header, and an orientation that is text, do no harm.
    odd = [b"Exif\0\0 not a header", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02a\0\0\0"]
    for content in odd if kind != "TIFF" else ():
        Image.fromarray(upright).save(tmp_path / "photo", kind, exif=content)
        assert pictures.read_picture(tmp_path / "photo", 3).size == (8, 16)


def test_a_png_file_may_say_behind_its_pixels_that_it_lies_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    deep = random_pixels(4, 7, 1, dtype=np.uint16)
    header = struct.pack(">IIBBBBB", 7, 4, 16, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep))
    late = exif.tobytes().removeprefix(b"Exif\0\0")
    content = png_of_chunks([(b"IHDR", header), (b"IDAT", rows), (b"eXIf", late), (b"IEND", b"")])
    path = write_files(tmp_path, {"late.png": content}) / "late.png"
    assert pictures.read_header(path) == pictures.PictureHeader(7, 4, 1, 16)
    np.testing.assert_array_equal(pictures.read_picture(path, 1), np.rot90(deep[..., 0] >> 8, -1))


def test_the_checksums_of_a_png_file_are_checked(tmp_path):
    """Rows that are stored as they are can be decoded when damaged."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB), 0)
    damaged = bytearray(png_of_chunks([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]))
    damaged[damaged.index(RGB[-1].tobytes()) + 5] ^= 1
    with pytest.raises(pictures.BadPicture, match="a damaged or cut-off PNG file .*checksum"):
        pictures.read_picture(written(tmp_path, bytes(damaged)), 3)


def test_other_data_in_a_file_do_no_harm(tmp_path):
    """A second picture, as telephones write (a map of depths, a smaller copy), and bytes behind the end."""
    path = written(tmp_path, encoded(Image.fromarray(RGB), "MPO", save_all=True, append_images=SECOND))
    assert pictures.read_header(path) == pictures.PictureHeader(HEIGHT, WIDTH, 3, 8)
    assert pictures.read_picture(path, 3).size == (WIDTH, HEIGHT)
    for form in ("jpeg-rgb", "webp-lossy"):
        content, _ = LOSSY[form]
        whole, longer = written(tmp_path, content), written(tmp_path, content + b"by a camera" * 9, "longer.jpg")
        assert pictures.read_header(longer) == pictures.read_header(whole)
        np.testing.assert_array_equal(*(pixels(path, 3) for path in (longer, whole)))


def with_zeros_at_the_end(content, kept):
    """Zeros are a valid end of packed pixels: they can all be decoded."""
    start = int((len(content) - WITHOUT_PIXELS) * kept)
    return content[:start] + bytes(len(content) - start)


def large_png(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png_of_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")])


ODD, NO_PICTURE = "a TIFF file of a form that is not read; save it", "not a picture that can be read"
REFUSED = {
    "empty": (b"", NO_PICTURE),
    "text": (b"Dear diary,\n" * 20, NO_PICTURE),
    "start of PNG": (b"\x89PNG\r\n\x1a\n", ""),
    # Also where Pillow's own limit is met first.
    **{f"{side} pixels wide": (large_png(side), ".*pixels") for side in (13_000, 16_000, 2**16)},
    **{
        f"two in {kind}": (encoded(Image.fromarray(RGB), kind, save_all=True, append_images=SECOND), "has several f")
        for kind in ("GIF", "WEBP", "PNG", "TIFF")
    },
    **{
        f"{kept} of PNG, zeros": (with_zeros_at_the_end(encoded(random_pixels(64, 64, 3) // 16, "PNG"), kept), "")
        for kept in (0.05, 0.6, 1.0)
    },
    # TIFF files that are not decoded as they are meant.
    "signed": (tiff(RGB.astype(np.int8)), NO_PICTURE),
    "floats": (tiff(GRAY.astype(np.float32)), ODD),
    "white is 0, 16 bits": (tiff(GRAY.astype(np.uint16), PhotometricInterpretation=0), ODD),
    "gray and alpha by channel": (tiff(RGBA[..., :2], packed=True, PlanarConfiguration=2), ODD),
    "gray and alpha of 16 bits": (tiff(RGBA[..., :2].astype(np.uint16)), NO_PICTURE),
    "JPEG within": (encoded(RGB, "TIFF", compression="jpeg"), ODD),
    "a tile of 4 billion pixels": (tiff(RGB, TileWidth=2**16, TileLength=2**16), ".*4,294,967,296 pixels"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_files_that_are_no_whole_picture_are_refused(form, tmp_path):
    content, message = REFUSED[form]
    assert_refused(written(tmp_path, content), message)


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert_refused(tmp_path / "link.png", "no file, or a link to nothing")


# Cropping and scaling, shown on pictures whose pixels are their own coordinates.
CELEBA = data_spec("celeba64")


def coordinates(height, width):
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


def sized(height, width, crop_box=None, resize="none"):
    return dataclasses.replace(CELEBA, height=height, width=width, crop_box=crop_box, resize=resize)


def centers(start, stop, count):
    """The middle of each of `count` equal cells between two borders; pixel 0 goes from 0 to 1 and is called 0."""
    return start + (np.arange(count) + 0.5) * (stop - start) / count - 0.5


def test_cropping_and_scaling():
    for spec, size, columns, rows, tolerance in (
        (sized(30, 20, (3, 40, 23, 70)), (100, 60), (3, 23), (40, 70), 0),
        # Without scaling the middle is taken, at whole pixels.
        (sized(20, 20, None, "crop"), (50, 20), (0, 20), (15, 35), 0),
        (sized(20, 20, None, "crop"), (20, 41), (10, 30), (0, 20), 0),
        # The shorter side fits and the longer one is cut evenly.
        (sized(25, 25, None, "crop"), (100, 200), (50, 150), (0, 100), 0.76),
        (sized(64, 64, None, "crop"), (64, 30), (0, 30), (17, 47), 0.76),
        (sized(20, 50, None, "stretch"), (100, 200), (0, 200), (0, 100), 0.76),
        (sized(64, 64, (15, 40, 163, 188), "stretch"), (218, 178), (15, 163), (40, 188), 0.5),
    ):
        found = np.asarray(pictures.fitted(Image.fromarray(coordinates(*size)), spec)).astype(int)
        assert found.shape[:2] == (spec.height, spec.width)
        expected_columns, expected_rows = centers(*columns, spec.width), centers(*rows, spec.height)
        assert np.abs(found[..., 0] - np.clip(expected_columns, 0, None)).max() <= tolerance
        assert np.abs(found[..., 1] - np.clip(expected_rows, 0, None)[:, np.newaxis]).max() <= tolerance
    # Smaller pictures are averages: of black and white, gray.
    board = Image.fromarray(np.uint8(255 * (np.indices([60, 40]).sum(axis=0) % 2)))
    for resize in ("crop", "stretch"):
        gray = np.asarray(pictures.fitted(board, sized(10, 10, None, resize))).astype(int)
        assert np.abs(gray - 127).max() < 20


def test_large_pictures_are_read_two_at_a_time(tmp_path):
    place, together = written(tmp_path, encoded(Image.new("1", (5000, 4000)), "PNG")), threading.Barrier(2, timeout=9.0)
    reading = []

    def read(picture):
        reading.append(picture)
        together.wait()
        assert reading.pop() and len(reading) < 2

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pictures._read_opened(place, 10**8, read), range(4)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_get_the_same_as_pictures(channels):
    spec = dataclasses.replace(CELEBA, crop_box=(1, 2, 11, 22), height=6, width=5, channels=channels)
    pixels = random_pixels(24, 16, channels)
    found = pictures.fit_images(pixels[np.newaxis], spec)[0]
    assert found.dtype == np.uint8 and found.shape == (6, 5, channels)
    # Channel by channel: the last of two or four need not be an alpha channel.
    for number in range(channels):
        picture = Image.fromarray(pixels[..., number]).crop((1, 2, 11, 22))
        np.testing.assert_array_equal(found[..., number], picture.resize((5, 6), Image.Resampling.BILINEAR))
    if channels == 3:
        colors = Image.fromarray(pixels).crop((1, 2, 11, 22)).resize((5, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, colors)
