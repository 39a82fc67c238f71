import types

import numpy as np
import pytest
from PIL import Image

from nvae_tf.config import ModelConfig
from nvae_tf.data import DataSpec
from nvae_tf.evaluation.denoising import load_references, psnr, ssim
from tests import refuses


def test_clean_images_of_a_folder_have_the_names_of_the_noisy_ones(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [4, 8, 8], np.uint8)
    for name, image in zip("abcd", images, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    form = dict(source="folder", source_name=None, height=8, width=8, channels=1, range=(0, 255), noise="gaussian")
    model = ModelConfig(likelihood="noisy_signal", noise_variance=(0.0, 0.04))
    config = types.SimpleNamespace(config=types.SimpleNamespace(model=model))
    source = types.SimpleNamespace(names=lambda: ["noisy/test/c.tif", "noisy/test/a.tif"])
    task = types.SimpleNamespace(trained=config, spec=DataSpec(**form), source=source)
    found = load_references(task, str(tmp_path))
    np.testing.assert_allclose(found, images[[2, 0], ..., np.newaxis] / 255, atol=1e-6)
    assert load_references(task, None) is None
    source.names = lambda: ["noisy/test/x/a.tif", "noisy/test/y/a.tif"]
    refuses("of one name in several folders", load_references, task, str(tmp_path))
    source.names = lambda: ["noisy/test/e.tif"]
    refuses("has no clean image of the name of noisy/test/e.tif", load_references, task, str(tmp_path))


@pytest.mark.parametrize("size", [(8, 9, 2), (4, 20, 1)])
def test_psnr_and_ssim(size):
    clean = np.random.default_rng(0).random([3, *size], np.float32)
    moved = clean + np.float32([0.1, 0.01, 0.0]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(psnr(moved, clean), [20, 40, 100], atol=0.01)
    assert ssim(clean, clean).tolist() == [1.0] * 3 and (ssim(1 - clean, clean) < 0).all()
