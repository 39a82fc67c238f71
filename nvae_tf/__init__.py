"""NVAE, a deep hierarchical variational autoencoder, on TensorFlow and Keras.

For example:

    config = nvae_tf.experiment_config("cifar10")
    model = nvae_tf.NVAE(config.model, config.objective)       # a keras.Model; help(nvae_tf.NVAE) has its methods
    model.compile(optimizer=nvae_tf.NVAEAdamax())
    model = nvae_tf.load("runs/cifar10")                       # a run folder, "hf://user/repo", or "digits"
    model = nvae_tf.from_torch_checkpoint("cifar10.pt")        # a published file
    images = nvae_tf.load_images("my_pictures", model.config)  # [count, height, width, channels] in [0, 1]
    images = model.generate(64, temperature=0.7, seed=1)       # [64, height, width, channels] in [0, 1]
"""

import importlib
import sys

from nvae_tf.config import __version__  # noqa: F401

_PLACES = {  # loaded when first used: settings and plans can be checked without waiting for TensorFlow
    "NVAE": "nvae_tf.models",
    "NVAEAdamax": "nvae_tf.optimization",
    "ExperimentConfig": "nvae_tf.config",
    "ModelConfig": "nvae_tf.config",
    "ObjectiveConfig": "nvae_tf.config",
    "experiment_config": "nvae_tf.presets",
    "from_torch_checkpoint": "nvae_tf.published.torch_file",
    "load": "nvae_tf.runs.loading",
    "load_images": "nvae_tf.data.picture_folder",
    "save": "nvae_tf.runs.loading",
    "sklearn": "nvae_tf.sklearn",
    "register_cell": "nvae_tf.layers.residual_cells",
    "register_likelihood": "nvae_tf.distributions.image_likelihood",
}


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'nvae_tf' has no attribute {name!r}; it has {', '.join(sorted(_PLACES))}")
    if _PLACES[name] not in ("nvae_tf.config", "nvae_tf.presets"):
        if "tensorflow" not in sys.modules:
            importlib.import_module("nvae_tf.errors").start_tensorflow_quietly()
        importlib.import_module("nvae_tf.models")  # registers the model with Keras
    module = importlib.import_module(_PLACES[name])
    return module if name == "sklearn" else getattr(module, name)


def __dir__() -> list[str]:
    # No `__all__`: with it `help(nvae_tf)` would print all of Keras' methods.
    return [*sorted(_PLACES), "__version__"]


if "keras" in sys.modules:
    importlib.import_module("nvae_tf.models")  # so that `keras.models.load_model` knows the model
