"""The smallest model of binary images that has a hierarchy, and what tests do with it."""

import keras
import numpy as np

from nvae_tf.config import ModelConfig

ARCHITECTURE = dict(num_latent_scales=2, num_groups_per_scale=1, num_latent_per_group=2)
ARCHITECTURE |= dict.fromkeys(("num_channels_encoder", "num_channels_decoder"), 2)
ARCHITECTURE |= dict.fromkeys(("num_preprocess_blocks", "num_postprocess_blocks"), 0)
ARCHITECTURE |= dict.fromkeys(("num_cells_per_group_encoder", "num_cells_per_group_decoder"), 1)
TINY = ARCHITECTURE | dict(image_height=4, image_width=4, image_channels=1, num_bits=1, likelihood="bernoulli")
# Padded on all sides.
PADDED = dict(image_height=6, image_width=6, padded_height=8, padded_width=8)


def tiny_config(**changes) -> ModelConfig:
    return ModelConfig(**TINY | changes)


def images_of(config, count=4):
    shape = (count, *config.image_shape)
    levels = 2**config.num_bits
    return np.float32(np.random.default_rng(0).integers(0, levels, shape) / (levels - 1))


def tiny_model(optimizer=None, objective=None, seed=3, **settings):
    """A model with its optimizer's slots where one is given; with the same settings all have the same weights."""
    # Not at the top: tests of settings need no TensorFlow.
    from nvae_tf.models.nvae import NVAE

    names = settings.keys() & {"recompute", "accumulate_steps", "label_dropout", "dtype"}
    how = {name: settings.pop(name) for name in names}
    model = NVAE(tiny_config(**settings), objective, seed, **how)
    if optimizer is not None:
        model.compile(optimizer=optimizer)
        model.optimizer.build(model.trainable_variables)
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            # What it finds by itself after some skipped steps.
            model.optimizer.dynamic_scale.assign(64.0)
    return model


def shaken(model, by=0.1):
    """The model, none of whose weights, running statistics included, is as it was initialized."""
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.dtype == "float32" and len(weight.shape):
            weight.assign(weight + by * generator.uniform(size=weight.shape))
    return model


def with_distinct_classes(model):
    """The conditional model shaken, its classes so different that not all images are most likely in the same."""
    from nvae_tf.models.top_down import ClassEmbedding

    generator = np.random.default_rng(1)
    for layer in shaken(model)._flatten_layers():
        if isinstance(layer, ClassEmbedding):
            layer.table.assign(0.3 * generator.normal(size=layer.table.shape))
    return model


def flat(arrays):
    """Arrays `[count, ...]` side by side, `[count, values]`."""
    return np.concatenate([np.reshape(array, [len(array), -1]) for array in arrays], axis=1)


def values(variables):
    return [variable.numpy() for variable in variables]


def state_of(model):
    """All that a step may change, but for the count of skipped steps."""
    skipped = {id(variable) for variable in model.running.skipped_steps.variables}
    variables = [*model.variables, *model.optimizer.variables]
    return {variable.path: variable.numpy() for variable in variables if id(variable) not in skipped}


def assert_same(found, expected):
    """The same arrays, bit for bit, in lists or dictionaries."""
    if not isinstance(found, dict):
        found, expected = (dict(enumerate(arrays)) for arrays in (found, expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=str(name))


def assert_near(found, expected, rtol=1e-4, atol=1e-5, floor=1.0):
    """Nearly the same arrays; `atol` is relative to an array's largest number, or to `floor` if that is larger."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol, atol * max(floor, np.max(np.abs(other), initial=0.0)))
