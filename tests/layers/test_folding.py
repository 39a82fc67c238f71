import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass
from tests.tiny_model import images_of, shaken, tiny_config

IMAGES = images_of(tiny_config(), 2)


def shaken_model(**changes):
    return shaken(NVAE(tiny_config(num_channels_encoder=4, num_channels_decoder=4, **changes)), by=0.3)


def parameters(model, forward=None):
    noise = noise_per_image(model.plan.latent_shapes(), image_seeds(3, 2))
    return inference_pass(model, tf.constant(IMAGES), noise, forward).parameters.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("cell_set", ["res_mbconv", "res_bnswish", "res_bnelu", "res_elu", "mbconv_sep", "mbconv_res"])
def test_the_same_numbers(cell_set):
    model = shaken_model(cell_set=cell_set, num_preprocess_blocks=1, num_postprocess_blocks=1, num_flows=1)
    expected, found = parameters(model), parameters(model, FoldedPass(folded=folded_weights(model.stacks())))
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


def test_batch_norms_beside_a_convolution_are_gone_and_the_weights_are_copies():
    model = shaken_model()
    folded = folded_weights(model.stacks())
    decoder, encoder = model.top_down.scales[1].cells.branch, model.bottom_up.scales[0].cells.branch
    # Of an inverted residual all four, of activated convolutions in a row all but the first, which follows a sum.
    of_decoder = [norm for norm in decoder._flatten_layers() if norm in model.batch_norms]
    assert [folded[norm] for norm in of_decoder] == [()] * 4
    first, second = (folded[operation.norm] for operation in encoder.parts)
    assert first and not second
    before = parameters(model, FoldedPass(folded=folded))
    for weight in model.top_down.scales[0].combiners.weights:
        weight.assign(weight + 1.0)
    np.testing.assert_array_equal(parameters(model, FoldedPass(folded=folded)), before)
    assert np.abs(parameters(model) - before).max() > 1e-3


def test_half_precision_keeps_kernels_alone_and_a_model_in_it_is_refused():
    variables = tf.nest.flatten([*folded_weights(shaken_model().stacks(), "bfloat16").values()])
    assert {variable.dtype for variable in variables if len(variable.shape) > 2} == {tf.bfloat16}
    assert {variable.dtype for variable in variables if len(variable.shape) == 2} == {tf.float32}
    model = NVAE(tiny_config(), dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="half precision can't be folded"):
        folded_weights(model.stacks())
