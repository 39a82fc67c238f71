import functools

import numpy as np
import pytest
import tensorflow as tf
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import nvae_tf
from nvae_tf.sklearn import NVAETransformer
from tests import refuses
from tests.tiny_model import tiny_model


class AnyNumbers(NVAETransformer):
    """Takes rows of any length and range, as scikit-learn's checks give them, for images."""

    def _images(self, rows):
        rows = 1.0 / (1.0 + np.exp(-np.pad(np.float64(rows), ((0, 0), (0, 16)))[:, :16]))
        return super()._images(np.float32(rows))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimator's parameters changed")
def test_the_checks_of_scikit_learn(tmp_path, monkeypatch):
    settings = dict(num_bits=8, likelihood="normal", num_latent_scales=1, num_groups_per_scale=2)
    nvae_tf.save(tiny_model(**settings), tmp_path / "run")
    # Some forty estimators read it.
    monkeypatch.setattr("nvae_tf.sklearn.load", functools.cache(nvae_tf.load))
    check_estimator(AnyNumbers(str(tmp_path / "run")), on_skip=None)


def test_in_a_pipeline():
    model = tiny_model()
    images = np.random.default_rng(0).integers(0, 2, (20, 4, 4, 1)).astype(np.float32)
    pipeline = clone(make_pipeline(NVAETransformer(model, pool="mean"), LogisticRegression()))
    pipeline.fit(images, images[:, 0, 0, 0])
    assert pipeline[0].model_ is model and list(pipeline[:1].get_feature_names_out()) == [
        f"group{group}_c{channel}" for group in (0, 1) for channel in (0, 1)
    ]
    flat = pipeline[0].transform(images.reshape(20, -1))
    np.testing.assert_array_equal(flat, model.features(images, pool="mean", batch_size=256))
    with pytest.raises(ValueError, match=r"X has 9 values for each image; this model's images are \(4, 4, 1\)"):
        NVAETransformer(model).fit(images[:, :3, :3].reshape(20, -1))
    with pytest.raises(ValueError, match=r"X has images of \(2, 8, 1\); this model's images are \(4, 4, 1\)"):
        pipeline[0].transform(images.reshape(20, 2, 8, 1))
    np.testing.assert_array_equal(pipeline[0].transform(tf.constant(images)), flat)
    refuses("groups = 5: must be a whole number from 0 to 1", NVAETransformer(model, groups=[5]).fit, images)
    refuses("pool = 'max': must be None", NVAETransformer(model, pool="max").fit, images)
