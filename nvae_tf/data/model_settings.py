"""What a data set asks of the model: the size of the images, their padding, bits and likelihood."""

from typing import Any

from nvae_tf.config import ModelConfig, config_to_dict
from nvae_tf.data.specs import DataSpec


def image_settings(spec: DataSpec) -> dict[str, Any]:
    """The settings of `ModelConfig` that follow from a data set. Binarised images have 1 bit."""
    return {
        "image_height": spec.height,
        "image_width": spec.width,
        "image_channels": spec.channels,
        "padded_height": None if spec.padded_height == spec.height else spec.padded_height,
        "padded_width": None if spec.padded_width == spec.width else spec.padded_width,
        "num_bits": 1 if spec.binarise else spec.num_bits,
        "likelihood": spec.likelihood,
    }


def check_model_fits(config: ModelConfig, spec: DataSpec) -> None:
    """Checks that a model takes the images of a data set; padding and a continuous likelihood are free.

    Raises:
      ValueError: the size, channels or bits differ, or one of the two is for binary images and the other is not.
    """
    settings, asked = config_to_dict(config), image_settings(spec)
    names = ["image_height", "image_width", "image_channels", "num_bits"]
    if "bernoulli" in (config.likelihood, spec.likelihood):
        names.append("likelihood")
    wrong = [
        f"model.{name} is {settings[name]!r}, not {asked[name]!r}" for name in names if settings[name] != asked[name]
    ]
    if wrong:
        raise ValueError(
            f"the model does not fit data set {spec.name!r}: {'; '.join(wrong)}. "
            f"Set what differs, or start from the config of {spec.name!r}"
        )
