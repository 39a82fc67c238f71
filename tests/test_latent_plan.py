"""The topology as data: groups, shapes and channels of every part, and what is said where they do not fit."""

import dataclasses

import pytest

from nvae_tf.config import ModelConfig
from nvae_tf.latent_plan import (
    CELL_SETS,
    Block,
    ConvolutionBranch,
    InvertedBranch,
    Scale,
    groups_per_scale,
    latent_plan,
)


def config(**settings):
    return ModelConfig(**{"num_preprocess_blocks": 1, "num_postprocess_blocks": 1, **settings})


@pytest.mark.parametrize(
    ("scales", "groups", "adaptive", "minimum", "expected"),
    [
        (1, 30, False, 1, (30,)),
        (3, 4, False, 1, (4, 4, 4)),
        (2, 10, True, 1, (10, 5)),
        (3, 20, True, 1, (20, 10, 5)),
        (5, 16, True, 4, (16, 8, 4, 4, 4)),
        (3, 7, True, 1, (7, 3, 1)),
        (3, 2, True, 1, (2, 1, 1)),  # never none
        (3, 2, True, 4, (2, 4, 4)),  # the minimum leaves the largest scale alone
        (3, 2, False, 4, (2, 4, 4)),
        (4, 1, True, 2, (1, 2, 2, 2)),
    ],
)
def test_groups_per_scale_from_the_largest_down(scales, groups, adaptive, minimum, expected):
    settings = config(
        num_latent_scales=scales,
        num_groups_per_scale=groups,
        adaptive_groups=adaptive,
        min_groups_per_scale=minimum,
    )
    assert groups_per_scale(settings) == expected


def test_scales_from_the_top_with_sizes_channels_and_groups():
    plan = latent_plan(
        config(
            image_height=64,
            image_width=32,
            num_latent_scales=3,
            num_groups_per_scale=4,
            adaptive_groups=True,
            num_channels_encoder=5,
            num_channels_decoder=7,
            num_latent_per_group=6,
        )
    )
    assert plan.scales == (
        Scale(8, 4, 5 * 8, 7 * 8, (0,)),
        Scale(16, 8, 5 * 4, 7 * 4, (1, 2)),
        Scale(32, 16, 5 * 2, 7 * 2, (3, 4, 5, 6)),
    )
    assert plan.num_groups == 7
    assert not plan.is_vanilla
    assert plan.latent_shapes() == ((8, 4, 6), *[(16, 8, 6)] * 2, *[(32, 16, 6)] * 4)
    assert [scale.height for scale in plan.scale_of_groups()] == [8, 16, 16, 32, 32, 32, 32]


def test_blocks_double_and_halve_the_channels():
    plan = latent_plan(
        config(
            num_preprocess_blocks=2,
            num_preprocess_cells=3,
            num_postprocess_blocks=2,
            num_postprocess_cells=4,
            num_channels_encoder=5,
            num_channels_decoder=7,
        )
    )
    assert plan.preprocess == (Block(5, 10, 3), Block(10, 20, 3))
    assert plan.postprocess == (Block(28, 14, 4), Block(14, 7, 4))
    assert plan.scales[0].encoder_channels == 20
    assert plan.scales[0].decoder_channels == 28


def test_without_blocks_the_largest_scale_has_the_size_of_the_image():
    plan = latent_plan(config(num_preprocess_blocks=0, num_postprocess_blocks=0, num_channels_encoder=9))
    assert (plan.preprocess, plan.postprocess) == ((), ())
    assert (plan.scales[0].height, plan.scales[0].encoder_channels) == (32, 9)


def test_the_frame_counts_not_the_image():
    plan = latent_plan(config(image_height=28, image_width=28, padded_height=32, padded_width=32))
    assert (plan.scales[0].height, plan.scales[0].width) == (16, 16)


def test_one_group_in_all_is_the_vanilla_model():
    assert latent_plan(config(num_groups_per_scale=1)).is_vanilla
    assert not latent_plan(config(num_groups_per_scale=2)).is_vanilla
    assert not latent_plan(config(num_groups_per_scale=1, num_latent_scales=2)).is_vanilla


@pytest.mark.parametrize(
    ("name", "preprocess", "encoder", "decoder", "postprocess"),
    [
        ("res_mbconv", "bnswish bnswish", "bnswish bnswish", (5, 6), (5, 3)),
        ("res_bnswish", *["bnswish bnswish"] * 4),
        ("res_bnelu", *["bnelu bnelu"] * 4),
        ("res_elu", *["elu elu"] * 4),
        ("mbconv_sep", (5, 3), (5, 6), (5, 6), (5, 3)),
        ("mbconv_sep11", (5, 3), (11, 6), (11, 6), (5, 3)),
        ("mbconv_den", (5, 3, 8), (5, 6), (5, 6), (5, 3, 8)),
        ("res53_mbconv", "bnswish5 bnswish", "bnswish5 bnswish", (5, 6), (5, 3)),
        ("res35_mbconv", "bnswish bnswish5", "bnswish bnswish5", (5, 6), (5, 3)),
        ("res55_mbconv", "bnswish5 bnswish5", "bnswish5 bnswish5", (5, 6), (5, 3)),
        ("mbconv_res", (5, 3), (5, 6), "bnswish bnswish", "bnswish bnswish"),
    ],
)
def test_the_cell_sets(name, preprocess, encoder, decoder, postprocess):
    def branch(words):
        if isinstance(words, str):
            return ConvolutionBranch(tuple(words.split()))
        return InvertedBranch(*words)

    cells = latent_plan(config(cell_set=name, num_channels_encoder=8, num_channels_decoder=8)).cells
    expected = tuple(map(branch, (preprocess, encoder, decoder, postprocess)))
    assert (cells.preprocess, cells.encoder, cells.decoder, cells.postprocess) == expected


def test_no_cell_set_is_left_out_above():
    assert len(CELL_SETS) == 11


def message_of(**settings):
    with pytest.raises(ValueError) as caught:
        latent_plan(config(**settings))
    return str(caught.value)


def test_any_size_fits_with_the_smallest_frame_around_it():
    plan = latent_plan(config(image_height=28, image_width=33, num_latent_scales=3))
    assert [(scale.height, scale.width) for scale in plan.scales] == [(4, 5), (8, 10), (16, 20)]
    asked_for = config(image_height=28, image_width=33, padded_height=32, padded_width=40, num_latent_scales=3)
    assert latent_plan(asked_for) == plan


def test_a_frame_that_does_not_fit():
    message = message_of(image_height=28, padded_height=28, num_latent_scales=3)
    assert "model.padded_height = 28: not divisible by 8" in message
    assert "1 preprocess blocks and 3 scales halve it 3 times" in message
    assert "leave it out for the smallest that is" in message
    assert "model.padded_width = 33: not divisible by 2" in message_of(padded_width=33)
    # The other side's frame is chosen.
    assert "model.padded_width = 36: not divisible by 8" in message_of(padded_width=36, num_latent_scales=3)


def test_a_frame_smaller_than_the_image():
    assert "model.padded_width = 16: smaller than the image's width of 32" in message_of(padded_width=16)
    assert "model.padded_height = 24: smaller than the image's height of 32" in message_of(padded_height=24)


def test_blocks_that_differ():
    message = message_of(num_preprocess_blocks=2, num_postprocess_blocks=1)
    assert "model.num_postprocess_blocks = 1: must equal num_preprocess_blocks = 2" in message


def test_an_unknown_cell_set_names_the_nearest():
    message = message_of(cell_set="res_mbcov")
    assert "model.cell_set = 'res_mbcov'" in message
    assert "did you mean 'res_mbconv'?" in message
    assert "did you mean" not in message_of(cell_set="zzzz")


def test_channels_that_can_not_be_cut_into_groups():
    message = message_of(cell_set="mbconv_den", num_channels_encoder=12, num_channels_decoder=8)
    assert "its preprocess cells widen 12 channels 3 times, and 36 can't be cut into 8 groups" in message
    message = message_of(cell_set="mbconv_den", num_channels_encoder=8, num_channels_decoder=12)
    assert "its postprocess cells widen 12 channels 3 times" in message
    latent_plan(config(cell_set="mbconv_den", num_channels_encoder=8, num_channels_decoder=16))


def test_likelihoods_that_do_not_fit_the_images():
    message = message_of(likelihood="bernoulli", num_bits=8)
    assert "model.num_bits = 8: the Bernoulli likelihood is for 1-bit images" in message
    message = message_of(likelihood="logistic_mixture", image_channels=5)
    assert "model.image_channels = 5: the logistic mixture takes 1 to 4 channels" in message


def test_plans_are_equal_where_the_settings_are():
    settings = config()
    assert latent_plan(settings) == latent_plan(dataclasses.replace(settings))
    assert latent_plan(settings) != latent_plan(dataclasses.replace(settings, num_groups_per_scale=11))
