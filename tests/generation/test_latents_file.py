import json

import numpy as np
import pytest

from nvae_tf.generation.latents_file import load_latents, save_latents
from nvae_tf.latent_plan import latent_plan
from tests.data.picture_factory import damaged_in_the_middle
from tests.tiny_model import assert_same, tiny_config

PLAN = latent_plan(tiny_config(num_groups_per_scale=2))


@pytest.fixture
def latents():
    random = np.random.default_rng(0)
    return [random.normal(size=(3, *shape)).astype(np.float32) for shape in PLAN.latent_shapes()]


@pytest.fixture
def file(tmp_path, latents):
    path = tmp_path / "new folder" / "latents.npz"
    save_latents(path, latents, ["a.png", "b/ü.png", "c.png"])
    return path


def test_there_and_back(file, latents, tmp_path):
    stored = load_latents(file, PLAN)
    assert stored.names == ["a.png", "b/ü.png", "c.png"] and stored.labels is None
    assert_same(stored.latents, latents)
    assert [entry.name for entry in file.parent.iterdir()] == ["latents.npz"]
    with np.load(file, allow_pickle=False) as entries:
        flat, shapes = entries["latent"], json.loads(str(entries["about"]))["latent_shapes"]
    assert_same([flat], [np.concatenate([latent.reshape(3, -1) for latent in latents], axis=1)])
    # Of a client, which does not know the shapes; and of the first versions.
    np.savez(tmp_path / "flat.npz", latent=flat)
    groups = {f"group_{index:02d}": latent for index, latent in enumerate(latents)}
    about = json.dumps({"format": "nvae_tf latents", "latent_shapes": shapes})
    np.savez(tmp_path / "old.npz", about=np.array(about), **groups)
    for name in ("flat.npz", "old.npz"):
        assert_same(load_latents(tmp_path / name, PLAN).latents, latents)


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
        with pytest.raises(ValueError, match="^[^\n]*latents.npz: [^\n]+$"):
            load_latents(file, PLAN)
    with pytest.raises(FileNotFoundError, match="no such file of latents"):
        load_latents(tmp_path / "nowhere.npz", PLAN)
    with pytest.raises(ValueError, match="latents of shapes"):
        save_latents(tmp_path / "x.npz", [np.zeros((2, 4, 4, 2)), np.zeros((3, 4, 4, 2))])
