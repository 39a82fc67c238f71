"""A feature extractor of the user's own, for the Fréchet distance in other features than Inception's."""

import hashlib
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nvae_tf.evaluation.inception import FeatureExtractor


class NamedExtractor(NamedTuple):
    """An extractor whose name tells its module and the version of its file, see `FeatureExtractor`."""

    name: str
    features: Callable[[np.ndarray], np.ndarray]


def named_extractor(name: str) -> FeatureExtractor:
    """The extractor that `function()` of `module` makes, for "module:function".

    Args:
      name: the module must be one that Python finds, as a file in the working directory is.

    Raises:
      ValueError: there is no such module or function, or what it makes is no `FeatureExtractor`.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"--extractor={name}: name it as MODULE:FUNCTION, e.g. my_features:make_extractor")
    # An installed command has its own folder there in place of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--extractor={name}: Python finds no module {error.name!r}; it looks in the working directory, in "
            "PYTHONPATH and among the installed packages"
        ) from None
    make = getattr(module, function_name, None)
    if not callable(make):
        raise ValueError(f"--extractor={name}: {module_name} has no function {function_name!r}")
    extractor = make()
    if not (isinstance(getattr(extractor, "name", None), str) and callable(getattr(extractor, "features", None))):
        raise ValueError(
            f"--extractor={name}: gives an object of type {type(extractor).__name__}; it must have a `name`, a string, "
            "and a method `features(images)`, see nvae_tf.evaluation.inception.FeatureExtractor"
        )
    return NamedExtractor(f"{extractor.name} ({module_name}, {_digest(module)})", extractor.features)


def _digest(module: types.ModuleType) -> str:
    """Of the module's file: features that are kept belong to this version of it."""
    file = getattr(module, "__file__", None)
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:8] if file else "no file"
