import json
import os

import numpy as np
import pytest
from PIL import Image

from nvae_tf.generation.image_grid import image_grid, picture_names, write_animation, write_pictures, write_png
from nvae_tf.generation.latents_file import load_latents, save_latents
from nvae_tf.latent_plan import latent_plan
from tests import refuses
from tests.data.picture_factory import damaged_in_the_middle
from tests.tiny_model import assert_same, tiny_config

same = np.testing.assert_array_equal


def shades(count, height=2, width=3, channels=1):
    """Image i is filled with (i + 1) / 10."""
    values = (np.arange(count, dtype=np.float32) + 1) / 10
    return np.broadcast_to(values[:, None, None, None], [count, height, width, channels])


def test_images_lie_row_by_row_with_white_between():
    expected = np.full([10, 21, 1], 255, np.uint8)
    for number, (top, left) in enumerate([(0, 0), (0, 9), (0, 18), (8, 0), (8, 9)]):
        expected[top : top + 2, left : left + 3] = round((number + 1) / 10 * 255)
    same(image_grid(shades(5), columns=3), expected)
    # Nearly square by default.
    assert image_grid(shades(10)).shape == (3 * 8 - 6, 4 * 9 - 6, 1)
    for size, side in ((28, 84), (100, 100)):
        assert image_grid(shades(1, size, size), enlarge=None).shape == (side, side, 1)
    image = np.array([[0.0, 1.0], [0.2, 0.4]], np.float32).reshape(1, 2, 2, 1)
    same(image_grid(image, enlarge=3)[..., 0], np.kron([[0, 255], [51, 102]], np.ones([3, 3])))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_png_and_webp_read_back_exactly(tmp_path, channels, mode):
    frames = np.random.default_rng(0).integers(1, 256, (4, 64, 65, channels)).astype(np.uint8)
    write_png(tmp_path / "samples" / "grid.png", frames[0])
    with Image.open(tmp_path / "samples" / "grid.png") as picture:
        assert picture.mode == mode
        same(np.asarray(picture).reshape(frames[0].shape), frames[0])
    write_animation(tmp_path / "x.webp", frames / np.float32(255), 80, loop=False)
    same(frames_of(tmp_path / "x.webp", mode), frames)
    assert sorted(os.listdir(tmp_path)) == ["samples", "x.webp"] and os.listdir(tmp_path / "samples") == ["grid.png"]


def frames_of(path, mode):
    with Image.open(path) as picture:
        frames = []
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert(mode)).reshape(picture.height, picture.width, -1))
        return np.stack(frames)


def test_a_picture_each_in_its_own_size_and_none_replaces_another(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3)) / 255
    write_pictures(tmp_path / "new", images, ["a.jpg", "sub/b.png", "c"])
    for name, image in zip(("a.png", "sub/b.png", "c.png"), images, strict=True):
        same(np.asarray(Image.open(tmp_path / "new" / name)), np.rint(image * 255))
    assert picture_names(["a.jpg", "a.webp", "b.jpg"]) == ["a.jpg.png", "a.webp.png", "b.png"]
    write_pictures(tmp_path / "variants", np.stack([images[:2]] * 2), ["a.jpg", "a.webp"])
    written = [file.name for file in sorted((tmp_path / "variants").iterdir())]
    assert written == [f"a.{kind}_{number:03d}.png" for kind in ("jpg", "webp") for number in (0, 1)]
    deep = np.random.default_rng(0).integers(0, 4096, [2, 5, 4, 1]).astype(np.uint16)
    write_pictures(tmp_path / "deep", deep, ["a", "b"])
    same(np.asarray(Image.open(tmp_path / "deep" / "b.png")), deep[1, ..., 0])
    refuses("two pictures would be called a.jpg.png", picture_names, ["a.jpg", "a.webp", "a.jpg.png"])
    refuses("leads out of the folder", picture_names, ["a.jpg", "a/../../b.png"])


PLAN = latent_plan(tiny_config(num_groups_per_scale=2))
RANDOM = np.random.default_rng(0)
LATENTS = [RANDOM.normal(size=(3, *shape)).astype(np.float32) for shape in PLAN.latent_shapes()]
NAMES = ["a.png", "b/ü.png", "c.png"]


@pytest.fixture
def file(tmp_path):
    save_latents(tmp_path / "new folder" / "latents.npz", LATENTS, NAMES)
    return tmp_path / "new folder" / "latents.npz"


def test_there_and_back(file, tmp_path):
    stored = load_latents(file, PLAN)
    assert stored.names == NAMES and stored.labels is None
    assert_same(stored.latents, LATENTS)
    assert [entry.name for entry in file.parent.iterdir()] == ["latents.npz"]
    with np.load(file, allow_pickle=False) as entries:
        flat, shapes = entries["latent"], json.loads(str(entries["about"]))["latent_shapes"]
    assert_same([flat], [np.concatenate([latent.reshape(3, -1) for latent in LATENTS], axis=1)])
    # Of a client, which does not know the shapes; and of the first versions.
    np.savez(tmp_path / "flat.npz", latent=flat)
    groups = {f"group_{index:02d}": latent for index, latent in enumerate(LATENTS)}
    about = json.dumps({"format": "nvae_tf latents", "latent_shapes": shapes})
    np.savez(tmp_path / "old.npz", about=np.array(about), **groups)
    for name in ("flat.npz", "old.npz"):
        assert_same(load_latents(tmp_path / name, PLAN).latents, LATENTS)


def test_damaged_and_other_files(file, tmp_path):
    with pytest.raises(ValueError, match="latents.npz: latents have .* this model's are .* another architecture"):
        load_latents(file, latent_plan(tiny_config()))
    content = file.read_bytes()
    with np.load(file) as stored:
        entries = dict(stored)
    wrong = [{"images": np.zeros(3)}, {"about": np.array([{}], dtype=object)}, {"about": entries["about"]}]
    wrong += [entries | {"names": np.array(["a"])}, entries | {"latent": entries["latent"][:, 1:]}]
    for bad in (content[:-30], b"no archive", damaged_in_the_middle(content), *wrong):
        if isinstance(bad, bytes):
            file.write_bytes(bad)
        else:
            np.savez(file, **bad)
        refuses("^[^\n]*latents.npz: [^\n]+$", load_latents, file, PLAN)
    refuses("no such file of latents", load_latents, tmp_path / "nowhere.npz", PLAN, error=FileNotFoundError)
    refuses("latents of shapes", save_latents, tmp_path / "x.npz", [np.zeros((2, 4, 4, 2)), np.zeros((3, 4, 4, 2))])
