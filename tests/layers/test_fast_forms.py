import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import FoldedPass, cpu_kernels, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass
from tests.tiny_model import images_of, shaken, tiny_config


def doubled(images):
    return tf.repeat(tf.repeat(images, 2, axis=1), 2, axis=2)


def in_phases(images, kernel):
    phases = [tf.nn.depthwise_conv2d(images, each, (1, 1, 1, 1), "SAME") for each in cpu_kernels.phase_kernels(kernel)]
    return cpu_kernels.interleaved(tf.stack(phases))


# The kernel, the plain expression, and the shapes of what both take.
KERNELS = {
    "swish": (cpu_kernels.swish, tf.nn.silu, [(2, 3, 4, 5)]),
    "nearest": (cpu_kernels.nearest_upsampling, doubled, [(2, 3, 5, 4)]),
    "nearest of one pixel": (cpu_kernels.nearest_upsampling, lambda x: tf.tile(x, (1, 2, 2, 1)), [(2, 1, 1, 3)]),
    "pointwise": (
        cpu_kernels.pointwise_convolution,
        lambda images, kernel, bias: tf.nn.conv2d(images, kernel, 1, "SAME") + bias,
        [(2, 4, 3, 5), (1, 1, 5, 6), (6,)],
    ),
    "of two": (
        cpu_kernels.convolution_of_two,
        lambda first, second, kernel, bias: tf.nn.conv2d(tf.concat([first, second], -1), kernel, 1, "SAME") + bias,
        [(2, 4, 3, 5), (2, 4, 3, 2), (1, 1, 7, 6), (6,)],
    ),
    "concatenated": (
        lambda *pieces: cpu_kernels.concatenated(pieces),
        lambda *pieces: tf.concat(pieces, -1),
        [(2, 3, 2, 4), (2, 3, 2, 1), (2, 3, 2, 2)],
    ),
    "fan-out": (
        lambda x: tf.add_n([(1.0 + i) * copy for i, copy in enumerate(cpu_kernels.fan_out(x, 3))]),
        lambda x: 6.0 * x,
        [(2, 3)],
    ),
    **{
        f"depthwise {size}x{size} on {height}x{width}": (
            cpu_kernels.depthwise_convolution,
            lambda images, kernel: tf.nn.depthwise_conv2d(images, kernel, (1, 1, 1, 1), "SAME"),
            [(2, height, width, 3), (size, size, 3, 1)],
        )
        for size, height, width in [(3, 5, 4), (5, 8, 8), (5, 6, 3), (5, 2, 2), (11, 8, 8), (1, 3, 3)]
    },
    **{
        f"doubled and {size}x{size} on {height}x{width}": (
            in_phases,
            lambda images, kernel: tf.nn.depthwise_conv2d(doubled(images), kernel, (1, 1, 1, 1), "SAME"),
            [(2, height, width, 3), (size, size, 3, 1)],
        )
        for size, height, width in [(3, 5, 4), (5, 4, 3), (5, 1, 1), (7, 3, 3), (1, 3, 3)]
    },
}
TOLERANCES = {tf.float32: 1e-4, tf.float16: 1e-2, tf.bfloat16: 5e-2}


@pytest.fixture(params=["cpu", "gpu"])
def processor(request, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "gpus", lambda: request.param == "gpu")


def with_gradients(function, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(*inputs)
    upstream = tf.random.stateless_normal(outputs.shape, (1, 2), dtype=outputs.dtype)
    return outputs, *tape.gradient(outputs, inputs, output_gradients=upstream)


def assert_near(found, expected, dtype):
    for value, target in zip(found, expected, strict=True):
        assert value.dtype == dtype
        value = tf.cast(value, tf.float32)
        np.testing.assert_allclose(value, target, atol=TOLERANCES[dtype] * max(1.0, np.max(np.abs(target))))


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(
    "dtype", [tf.float32, pytest.param(tf.float16, marks=pytest.mark.slow), tf.bfloat16], ids=lambda dtype: dtype.name
)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_equals_its_plain_expression(name, dtype, normal):
    kernel, plain, shapes = KERNELS[name]
    inputs = [tf.cast(normal(*shape), dtype) for shape in shapes]
    expected = with_gradients(plain, [tf.cast(tensor, tf.float32) for tensor in inputs])
    assert_near(tf.function(lambda: with_gradients(kernel, inputs))(), expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("one_cpu", [True, False], ids=["one pass", "plain"])
def test_normalized_swish_and_its_gradient(one_cpu, dtype, normal, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "on_one_cpu", lambda: one_cpu)
    images, upstream = (tf.cast(normal(2, 3, 4, 5), dtype) for _ in range(2))
    gamma, beta, mean = normal(3, 5)
    variance = np.abs(normal(5)) + 0.2
    outputs, gradient = cpu_kernels.normalized_swish(images, gamma, beta, mean, variance)
    standard = tf.nn.batch_normalization(tf.cast(images, tf.float32), mean, variance, beta, gamma, cpu_kernels.EPSILON)
    with tf.GradientTape() as tape:
        tape.watch(standard)
        expected = tf.nn.silu(standard)
    of_standard = tape.gradient(expected, standard, output_gradients=tf.cast(upstream, tf.float32))
    assert_near((outputs, gradient(upstream)), (expected, of_standard), dtype)


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
    expected, found = parameters(model), parameters(model, FoldedPass(folded=folded_weights(model._stacks())))
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


def test_batch_norms_beside_a_convolution_are_gone_and_the_weights_are_copies():
    model = shaken_model()
    folded = folded_weights(model._stacks())
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
    variables = tf.nest.flatten([*folded_weights(shaken_model()._stacks(), "bfloat16").values()])
    assert {variable.dtype for variable in variables if len(variable.shape) > 2} == {tf.bfloat16}
    assert {variable.dtype for variable in variables if len(variable.shape) == 2} == {tf.float32}
    model = NVAE(tiny_config(), dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="half precision can't be folded"):
        folded_weights(model._stacks())
