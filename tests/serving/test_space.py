import importlib.util

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from tests import ROOT


@pytest.fixture
def app():
    spec = importlib.util.spec_from_file_location("app", ROOT / "examples" / "space" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_draws_samples_and_variants(app, local, model, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with local.client("rest") as served:
        page = app.interface(served)
        try:
            _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
            client = Client(url, verbose=False)
            found = client.predict(1, 0.7, api_name="/sample")
            images = np.stack([np.asarray(Image.open(item["image"])) for item in found])[:, ::16, ::16]
            assert np.abs(images - 255.0 * model.generate(16, temperature=0.7, seed=1)).max() <= 1.0
            Image.fromarray((255.0 * np.ones([20, 30, 3])).astype(np.uint8)).save(tmp_path / "own.png")
            found = client.predict(handle_file(tmp_path / "own.png"), 2, 1, 1.0, api_name="/vary")
            variants = [np.asarray(Image.open(item["image"])) for item in found]
            assert len(variants) == 16 and all(np.array_equal(variant, variants[0]) for variant in variants)
        finally:
            page.close()
