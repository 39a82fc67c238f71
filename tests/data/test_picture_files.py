"""Picture files of every kind: their headers, their pixels, and what is wrong with those that can't be used."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from nvae_tf.data.pictures import BadPicture, PictureHeader, list_pictures, read_header, read_picture
from tests.data.picture_factory import (
    damaged_in_the_middle,
    encoded,
    png,
    png_of_chunks,
    random_pixels,
    tiff,
    with_palette,
    write_files,
)

HEIGHT, WIDTH = 13, 18
NUMBERS = random_pixels(HEIGHT, WIDTH, seed=3) % 5
COLOURS = np.array([[0, 0, 0], [250, 3, 9], [0, 200, 77], [31, 64, 128], [255, 255, 255]])
GREYS = np.array([[0, 0, 0], [10, 10, 10], [77, 77, 77], [128, 128, 128], [255, 255, 255]])
ALPHA = np.array([0, 255, 40, 255, 200])
RGB, RGBA = random_pixels(HEIGHT, WIDTH, 3), random_pixels(HEIGHT, WIDTH, 4)
GREY = RGB[..., :1]

# What is in the file, and the pixels that must come out.
EXACT = {
    **{f"png-{channels}": (png(RGBA[..., :channels]), RGBA[..., :channels]) for channels in (1, 2, 3, 4)},
    "png-palette": (encoded(with_palette(NUMBERS, COLOURS), "PNG"), COLOURS[NUMBERS]),
    "png-gray-palette": (encoded(with_palette(NUMBERS, GREYS), "PNG"), GREYS[NUMBERS][..., :1]),
    "png-transparent-palette": (
        encoded(with_palette(NUMBERS, COLOURS), "PNG", transparency=bytes(ALPHA.tolist())),
        np.concatenate([COLOURS[NUMBERS], ALPHA[NUMBERS][..., np.newaxis]], axis=-1),
    ),
    "png-1-bit": (encoded(Image.fromarray(GREY[..., 0] > 100), "PNG"), (GREY > 100) * 255),
    "webp-rgb": (encoded(RGB, "WEBP", lossless=True), RGB),
    "webp-rgba": (encoded(RGBA, "WEBP", lossless=True, exact=True), RGBA),
    "bmp-gray": (encoded(GREY, "BMP"), GREY),
    "bmp-rgb": (encoded(RGB, "BMP"), RGB),
    "bmp-palette": (encoded(with_palette(NUMBERS, COLOURS), "BMP"), COLOURS[NUMBERS]),
    "gif-gray": (encoded(GREY, "GIF"), GREY),
    "gif-color": (encoded(with_palette(NUMBERS, COLOURS), "GIF"), COLOURS[NUMBERS]),
    **{
        f"tiff-{channels}-{order}-{packed}": (tiff(RGBA[..., :channels], order, packed), RGBA[..., :channels])
        for channels in (1, 2, 3, 4)
        for order, packed in (("<", False), (">", True))
    },
    "tiff-lzw": (encoded(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff-packbits": (encoded(RGB, "TIFF", compression="packbits"), RGB),
    "tiff-by-channel": (tiff(RGB, PlanarConfiguration=2), RGB),
    "tiff-white-is-0": (tiff(GREY, PhotometricInterpretation=0), 255 - GREY),
    "tiff-palette": (encoded(with_palette(NUMBERS, COLOURS), "TIFF"), COLOURS[NUMBERS]),
    "tiff-1-bit": (encoded(Image.fromarray(GREY[..., 0] > 100), "TIFF"), (GREY > 100) * 255),
}

# Smooth, as photographs are: JPEG and lossy WebP then keep it to within a few values.
SMOOTH = np.add.outer(np.arange(HEIGHT) * 6, np.arange(WIDTH) * 7).astype(np.uint8)[..., np.newaxis]
SMOOTH_RGB = np.concatenate([SMOOTH, 255 - SMOOTH, SMOOTH // 2 + 60], axis=-1)
INK = np.concatenate([SMOOTH, SMOOTH // 2, 220 - SMOOTH // 2, np.full_like(SMOOTH, 51)], axis=-1)
SEVERAL = [RGB, 255 - RGB]


def several(kind):
    """A file with two frames or pages."""
    first, second = map(Image.fromarray, SEVERAL)
    return encoded(first, kind, save_all=True, append_images=[second])


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
CUT = {
    name: EXACT[name][0]
    for name in ("png-1", "png-3", "webp-rgb", "webp-rgba", "bmp-rgb", "tiff-3-<-False", "tiff-3->-True", "tiff-lzw")
} | {name: content for name, (content, _) in LOSSY.items()}


def pixels(path, channels):
    return np.asarray(read_picture(path, channels)).reshape(HEIGHT, WIDTH, channels)


@pytest.mark.parametrize("form", EXACT)
def test_header_and_pixels(form, tmp_path):
    content, expected = EXACT[form]
    # The name's ending does not matter, as long as it is one of a picture.
    path = write_files(tmp_path, {"picture.jpg": content}) / "picture.jpg"
    channels = expected.shape[-1]
    assert read_header(path) == PictureHeader(HEIGHT, WIDTH, channels, 8)
    np.testing.assert_array_equal(pixels(path, channels), expected)


@pytest.mark.parametrize("form", LOSSY)
def test_header_and_pixels_of_lossy_kinds(form, tmp_path):
    content, expected = LOSSY[form]
    path = write_files(tmp_path, {"picture.jpg": content}) / "picture.jpg"
    channels = expected.shape[-1]
    assert read_header(path) == PictureHeader(HEIGHT, WIDTH, channels, 8)
    error = np.abs(pixels(path, channels).astype(int) - expected)
    assert error.mean() < 3 and error.max() < 16


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "packed TIFF"])
def test_of_16_bits_the_upper_8_are_taken(kind, channels, tmp_path):
    # Every value there is, in another order in each channel.
    values = (np.arange(2**16)[:, None] + 9973 * np.arange(channels)).astype(np.uint16).reshape(256, 256, channels)
    content = {
        "PNG": lambda: png(values),
        "TIFF": lambda: tiff(values),
        "big-endian TIFF": lambda: tiff(values, ">"),
        "packed TIFF": lambda: tiff(values, packed=True),
    }[kind]()
    path = write_files(tmp_path, {"deep.png": content}) / "deep.png"
    if kind != "PNG" and channels == 2:
        with pytest.raises(BadPicture, match=r"\(gray with alpha: of 8\).*; save it as a PNG file"):
            read_header(path)
        return
    assert read_header(path) == PictureHeader(256, 256, channels, 16)
    found = np.asarray(read_picture(path, channels)).reshape(values.shape)
    np.testing.assert_array_equal(found, values >> 8)


def test_other_channels_on_demand(tmp_path):
    write_files(tmp_path, {"gray.png": png(GREY), "rgba.png": png(RGBA), "deep.png": png(GREY.astype(np.uint16) << 8)})
    for name in ("gray.png", "deep.png"):
        np.testing.assert_array_equal(pixels(tmp_path / name, 3), GREY.repeat(3, axis=-1))
        np.testing.assert_array_equal(pixels(tmp_path / name, 2), np.insert(GREY, 1, 255, axis=-1))
    np.testing.assert_array_equal(pixels(tmp_path / "rgba.png", 3), RGBA[..., :3])
    luminance = RGBA[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(tmp_path / "rgba.png", 1)[..., 0] - luminance).max() <= 1


def test_pictures_are_found_in_any_tree_in_order(tmp_path):
    found = ["a.png", "b/c/d.JPG", "b/c/e.webp", "b/f.bmp", "g.jpeg", "h.gif", "i.tif", "j.TIFF"]
    ignored = [
        ".hidden.png",
        ".git/x.png",
        "b/.cache/y.png",
        "__MACOSX/z.jpg",
        "notes.txt",
        "scan.psd",
        "png",
        "x.png.gz",
    ]
    write_files(tmp_path, {name: b"" for name in (*reversed(found), *ignored)})
    assert list_pictures(tmp_path) == found
    assert list_pictures(tmp_path / "b") == ["c/d.JPG", "c/e.webp", "f.bmp"]


@pytest.mark.parametrize("form", CUT)
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_a_cut_off_file_is_refused(form, kept, tmp_path):
    content = CUT[form][: int((len(CUT[form]) - WITHOUT_PIXELS) * kept)]
    path = write_files(tmp_path, {"cut.png": content}) / "cut.png"
    for read in (read_header, lambda path: read_picture(path, 3)):
        with pytest.raises(BadPicture, match=f"^{path}: "):
            read(path)


@pytest.mark.parametrize("form", ["gif-gray", "gif-color", "tiff-palette", "png-palette", "bmp-gray"])
@pytest.mark.parametrize("kept", [0.05, 0.3])
def test_a_cut_off_file_with_a_palette_is_refused(form, kept, tmp_path):
    content = EXACT[form][0]
    path = write_files(tmp_path, {"cut.gif": content[: int(len(content) * kept)]}) / "cut.gif"
    for read in (read_header, lambda path: read_picture(path, 3)):
        with pytest.raises(BadPicture, match=f"^{path}: "):
            read(path)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_cameras_are_upright(kind, orientation, tmp_path):
    upright = np.zeros([16, 8, 3], np.uint8)
    upright[:8, :4] = (250, 20, 20)
    picture = Image.fromarray(upright)
    # How the camera stores what is upright only when the orientation is heeded.
    stored = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    for turn in stored.get(orientation, []):
        picture = picture.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(tmp_path / "photo", kind, quality=95, exif=exif)
    assert read_header(tmp_path / "photo") == PictureHeader(16, 8, 3, 8)
    assert np.abs(np.asarray(read_picture(tmp_path / "photo", 3)).astype(int) - upright).mean() < 12


def test_a_png_file_may_say_behind_its_pixels_that_it_lies_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    deep = random_pixels(4, 7, 1, dtype=np.uint16)
    header = struct.pack(">IIBBBBB", 7, 4, 16, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep))
    content = png_of_chunks(header, rows, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    path = write_files(tmp_path, {"late.png": content}) / "late.png"
    assert read_header(path) == PictureHeader(7, 4, 1, 16)
    np.testing.assert_array_equal(read_picture(path, 1), np.rot90(deep[..., 0] >> 8, -1))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0 not a header", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02a\0\0\0"]
)
def test_odd_metadata_does_no_harm(kind, exif, tmp_path):
    """A broken header, and an orientation that is text."""
    Image.new("RGB", (8, 16), (250, 20, 20)).save(tmp_path / "photo", kind, exif=exif)
    assert read_header(tmp_path / "photo") == PictureHeader(16, 8, 3, 8)
    assert read_picture(tmp_path / "photo", 3).size == (8, 16)


def test_a_folder_that_can_not_be_read_is_not_passed_over(tmp_path):
    with pytest.raises(ValueError, match="gone: this folder can't be read"):
        list_pictures(tmp_path / "gone")


def test_a_link_back_into_the_tree_ends_nowhere(tmp_path):
    write_files(tmp_path, {"a/b/c.png": b"", "a/d.png": b""})
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    assert list_pictures(tmp_path) == ["a/b/c.png", "a/d.png"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_damage_in_the_middle_is_met_when_pixels_are_read(channels, tmp_path):
    content = damaged_in_the_middle(png(RGBA[..., :channels]))
    path = write_files(tmp_path, {"damaged.png": content}) / "damaged.png"
    assert read_header(path) == PictureHeader(HEIGHT, WIDTH, channels, 8)
    with pytest.raises(BadPicture, match=f"^{path}: a damaged or cut-off PNG file"):
        read_picture(path, channels)


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_a_png_file_whose_tail_is_zeros_is_refused(kept, tmp_path):
    """Zeros are a valid end of packed pixels: they can all be decoded."""
    content = encoded(random_pixels(64, 64, 3) // 16, "PNG")
    start = int((len(content) - WITHOUT_PIXELS) * kept)
    path = write_files(tmp_path, {"zeros.png": content[:start] + bytes(len(content) - start)}) / "zeros.png"
    with pytest.raises(BadPicture, match=f"^{path}: "):
        read_header(path)
        read_picture(path, 3)


def test_pixels_that_do_not_have_their_checksum_are_refused(tmp_path):
    """They can all be decoded: rows are stored as they are, and the last one is damaged."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    content = bytearray(png_of_chunks(header, zlib.compress(rows, 0)))
    content[content.index(RGB[-1].tobytes()) + 5] ^= 1
    path = write_files(tmp_path, {"damaged.png": bytes(content)}) / "damaged.png"
    with pytest.raises(BadPicture, match="a damaged or cut-off PNG file .*checksum"):
        read_picture(path, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_or_pages_none_is_taken(kind, tmp_path):
    path = write_files(tmp_path, {"several.gif": several(kind)}) / "several.gif"
    for read in (read_header, lambda path: read_picture(path, 3)):
        with pytest.raises(BadPicture, match=f"^{path}: has several frames or pages, .* save those that you want as"):
            read(path)


def test_a_second_picture_in_a_jpeg_file_does_no_harm(tmp_path):
    """Telephones write some: a map of depths, a smaller copy."""
    path = write_files(tmp_path, {"phone.jpg": several("MPO")}) / "phone.jpg"
    assert read_header(path) == PictureHeader(HEIGHT, WIDTH, 3, 8)
    assert read_picture(path, 3).size == (WIDTH, HEIGHT)


ODD_TIFFS = {
    "signed": tiff(RGB.astype(np.int8)),
    "32 bits": tiff(GREY.astype(np.uint32)),
    "floats": tiff(GREY.astype(np.float32)),
    "12 bits": tiff(GREY.astype(np.uint16), BitsPerSample=12),
    "white is 0, 16 bits": tiff(GREY.astype(np.uint16), PhotometricInterpretation=0),
    "16 bits by channel": tiff(RGB.astype(np.uint16), PlanarConfiguration=2),
    "gray and alpha by channel": tiff(RGBA[..., :2], packed=True, PlanarConfiguration=2),
    "JPEG within": encoded(RGB, "TIFF", compression="jpeg"),
    "a tile of 4 billion pixels": tiff(RGB, TileWidth=2**16, TileLength=2**16),
}


@pytest.mark.parametrize("form", ODD_TIFFS)
def test_tiff_files_that_are_not_decoded_as_they_are_meant_are_refused(form, tmp_path):
    path = write_files(tmp_path, {"odd.tif": ODD_TIFFS[form]}) / "odd.tif"
    message = "4,294,967,296 pixels" if "tile" in form else "a damaged TIFF file, or one of .*; save it as a PNG file"
    for read in (read_header, lambda path: read_picture(path, 3)):
        with pytest.raises(BadPicture, match=f"^{path}: .*{message}"):
            read(path)


@pytest.mark.parametrize("form", ["png-3", "jpeg-rgb", "webp-rgb", "bmp-rgb", "gif-color", "tiff-3-<-False"])
def test_a_picture_with_more_pixels_than_may_be_is_refused(form, tmp_path):
    content, _ = (EXACT | LOSSY)[form]
    path = write_files(tmp_path, {"large.png": content}) / "large.png"
    message = "is 13x18 .height x width., 234 pixels, .* data.max_pixels = 233; scale it down, or raise data.max_pixels"
    for read in (read_header, lambda path, most: read_picture(path, 3, most)):
        with pytest.raises(BadPicture, match=f"^{path}: {message}"):
            read(path, HEIGHT * WIDTH - 1)
        read(path, HEIGHT * WIDTH)


def test_the_largest_pictures_are_refused_in_one_line(tmp_path):
    """Also where Pillow's own limit is met first."""
    rows = zlib.compress(bytes(1000))
    for side in (13_000, 16_000, 2**16):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = write_files(tmp_path, {"huge.png": png_of_chunks(header, rows)}) / "huge.png"
        with pytest.raises(BadPicture, match=f"^{path}: .*scale it down") as caught:
            read_header(path)
        assert "\n" not in str(caught.value)


_PEAK_OF_READING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from nvae_tf.data.pictures import BadPicture, read_picture

def read(path):
    try:
        return read_picture(path, 3, fit=lambda picture: picture.resize((8, 8))).size
    except BadPicture as error:
        return error

with ThreadPoolExecutor(8) as threads:
    print(*threads.map(read, sys.argv[1:]), sep="\\n")
with open("/proc/self/status") as status:
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
print(int(peak) // 1024)
"""


def read_at_once(*paths):
    """What became of pictures that eight threads read in a process of their own; and its peak memory in MiB."""
    process = subprocess.run(
        [sys.executable, "-c", _PEAK_OF_READING, *map(str, paths)], capture_output=True, text=True, check=True
    )
    *results, peak = process.stdout.splitlines()
    return results, int(peak)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_what_a_header_claims_takes_no_memory(tmp_path):
    content = bytearray(encoded(SMOOTH_RGB, "JPEG", progressive=True))
    at = content.index(b"\xff\xc2") + 5
    content[at : at + 4] = struct.pack(">HH", 13_000, 13_000)
    (result,), peak = read_at_once(write_files(tmp_path, {"claim.jpg": content}) / "claim.jpg")
    assert "claim.jpg: is 13000x13000" in result and peak < 150


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_large_pictures_are_decoded_one_at_a_time(tmp_path):
    side = 6_000
    packer = zlib.compressobj(1)
    rows = [packer.compress(bytes(1 + 3 * side)) for _ in range(side)]
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = png_of_chunks(header, b"".join(rows) + packer.flush())
    folder = write_files(tmp_path, {f"{number}.png": content for number in range(8)})
    results, peak = read_at_once(*folder.iterdir())
    # One takes 4 bytes a pixel, 137 MiB.
    assert results == ["(8, 8)"] * 8 and peak < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"Dear diary,\n" * 20, "not a picture, whatever its name says, or one of another kind than PNG, JPG"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"RIFF\0\0\0\0WEBP", ""),
    ],
)
def test_what_is_no_picture_is_refused(content, message, tmp_path):
    path = write_files(tmp_path, {"text.png": content}) / "text.png"
    for read in (read_header, lambda path: read_picture(path, 3)):
        with pytest.raises(BadPicture, match=f"^{path}: {message}"):
            read(path)


def test_a_missing_file_and_a_broken_link_are_named(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name in ("link.png", "gone.png"):
        with pytest.raises(BadPicture, match=f"{name}: no file, or a link to nothing"):
            read_header(tmp_path / name)


@pytest.mark.parametrize("form", ["jpeg-gray", "jpeg-rgb", "webp-lossy"])
def test_bytes_behind_the_end_do_no_harm(form, tmp_path):
    content, expected = LOSSY[form]
    write_files(tmp_path, {"whole.jpg": content, "longer.jpg": content + b"written by a camera" * 9})
    header, channels = read_header(tmp_path / "longer.jpg"), expected.shape[-1]
    assert header == read_header(tmp_path / "whole.jpg")
    np.testing.assert_array_equal(pixels(tmp_path / "longer.jpg", channels), pixels(tmp_path / "whole.jpg", channels))
