"""The features of a model as a transformer of scikit-learn."""

import math
import os
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nvae_tf.latent_plan import feature_groups, feature_names
from nvae_tf.runs.loading import load


class NVAETransformer(TransformerMixin, BaseEstimator):
    """`NVAE.features` in a `Pipeline`; `fit` reads the model, and learns nothing.

    Example: `make_pipeline(NVAETransformer("digits"), StandardScaler(), LogisticRegression())`

    `model` is an `NVAE`, which copies share, or what `nvae_tf.load` takes; `groups` and `pool` are for `features`.
    `X` are images in [0, 1], `[count, height, width, channels]`, or a row of their values for each. ValueError where
    they are not of the model's size, or there is no such group.
    """

    def __init__(self, model: Any = "digits", groups: Any = "all", pool: str | None = None, batch_size: int = 256):
        self.model, self.groups, self.pool, self.batch_size = model, groups, pool, batch_size

    def __sklearn_clone__(self) -> "NVAETransformer":
        return type(self)(**self.get_params(deep=False))  # not a copy of the model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> "NVAETransformer":
        """Reads the model, and checks the images `X` and the settings."""
        self.model_ = load(self.model) if isinstance(self.model, str | os.PathLike) else self.model
        self._images(self._rows(X, reset=True))
        feature_groups(self.model_.plan, self.groups, self.pool)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features of the images `X`, float32 `[count, features]`."""
        check_is_fitted(self)
        images = self._images(self._rows(X, reset=False))
        return self.model_.features(images, self.groups, self.pool, batch_size=self.batch_size).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The names of the features, such as `group0_y1_x0_c3`."""
        check_is_fitted(self)
        return np.array(feature_names(self.model_.plan, self.groups, self.pool), object)

    def _rows(self, X: Any, reset: bool) -> np.ndarray:
        given, shape = tuple(getattr(X, "shape", ()))[1:], self.model_.config.image_shape
        if len(given) == 3 and given != shape:
            raise ValueError(f"X has images of {given}; this model's images are {shape}")
        X = np.reshape(X, (len(X), -1)) if len(given) == 3 else X
        return validate_data(self, X, reset=reset, dtype=np.float32)

    def _images(self, rows: np.ndarray) -> np.ndarray:
        shape = self.model_.config.image_shape
        if rows.shape[1] != math.prod(shape):
            raise ValueError(f"X has {rows.shape[1]} values for each image; this model's images are {shape}")
        return rows.reshape(-1, *shape)
