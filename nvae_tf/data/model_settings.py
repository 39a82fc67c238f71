"""What a data set asks of the model: the size of the images, their padding, bits and likelihood."""

from nvae_tf.config import ModelConfig
from nvae_tf.data_spec import DataSpec

# Settings of `ModelConfig` and the settings of `DataSpec` that they follow.
MODEL_SETTINGS = {
    "image_height": "height",
    "image_width": "width",
    "image_channels": "channels",
    "num_bits": "num_bits",
    "likelihood": "likelihood",
    "padded_height": "padded_height",
    "padded_width": "padded_width",
}


def check_model_fits(config: ModelConfig, spec: DataSpec) -> None:
    """Checks that a model takes the images of a data set; padding and a continuous likelihood are free.

    Raises:
      ValueError: the size, channels or bits differ, or one of the two is for binary images and the other is not.
    """
    names = ["image_height", "image_width", "image_channels", "num_bits"]
    if "bernoulli" in (config.likelihood, spec.likelihood):
        names.append("likelihood")
    wrong = [
        f"model.{name} is {getattr(config, name)!r}, but data.{MODEL_SETTINGS[name]} is "
        f"{getattr(spec, MODEL_SETTINGS[name])!r}"
        for name in names
        if getattr(config, name) != getattr(spec, MODEL_SETTINGS[name])
    ]
    if wrong:
        raise ValueError(f"the model does not fit data set {spec.name!r}: {'; '.join(wrong)}. Set them alike")
