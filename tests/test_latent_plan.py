import warnings

import pytest

from nvae_tf import latent_plan as plans
from nvae_tf.config import ModelConfig


def config(**settings):
    return ModelConfig(**{"num_preprocess_blocks": 1, "num_postprocess_blocks": 1, **settings})


def test_groups_per_scale_from_the_largest_down():
    for scales, groups, adaptive, minimum, expected in (
        (1, 30, False, 1, (30,)),
        (5, 16, True, 4, (16, 8, 4, 4, 4)),
        (3, 7, True, 1, (7, 3, 1)),
        (3, 2, True, 1, (2, 1, 1)),  # never none
        (3, 2, False, 4, (2, 4, 4)),  # the minimum leaves the largest scale alone
    ):
        settings = dict(num_latent_scales=scales, num_groups_per_scale=groups, adaptive_groups=adaptive)
        assert plans.groups_per_scale(config(**settings, min_groups_per_scale=minimum)) == expected


def test_any_size_fits_with_the_smallest_frame_around_it_and_without_blocks_the_largest_scale_has_its_size():
    plan = plans.latent_plan(config(image_height=28, image_width=33, num_latent_scales=3))
    assert [(scale.height, scale.width) for scale in plan.scales] == [(4, 5), (8, 10), (16, 20)]
    sizes = dict(image_height=28, image_width=28, padded_height=32, padded_width=32, num_channels_encoder=9)
    plan = plans.latent_plan(config(num_preprocess_blocks=0, num_postprocess_blocks=0, **sizes))
    assert (plan.preprocess, plan.postprocess) == ((), ())
    assert plan.scales[0] == plans.Scale(32, 32, 9, 32, tuple(range(10)))


def test_scales_from_the_top_with_sizes_channels_and_groups():
    sizes = dict(image_height=64, image_width=32, num_channels_encoder=5, num_channels_decoder=7)
    groups = dict(num_latent_scales=3, num_groups_per_scale=4, adaptive_groups=True, num_latent_per_group=6)
    plan = plans.latent_plan(config(**sizes, **groups))
    largest = plans.Scale(32, 16, 5 * 2, 7 * 2, (3, 4, 5, 6))
    assert plan.preprocess[0][:2] == (5, 10) and plan.postprocess[0][:2] == (14, 7)
    assert plan.scales == (plans.Scale(8, 4, 5 * 8, 7 * 8, (0,)), plans.Scale(16, 8, 5 * 4, 7 * 4, (1, 2)), largest)
    assert plan.num_groups == 7 and not plan.is_vanilla
    assert plan.latent_shapes() == ((8, 4, 6), *[(16, 8, 6)] * 2, *[(32, 16, 6)] * 4)
    # One group in all is the vanilla model.
    assert plans.latent_plan(config(num_groups_per_scale=1)).is_vanilla
    assert not plans.latent_plan(config(num_groups_per_scale=1, num_latent_scales=2)).is_vanilla


def test_the_cell_sets():
    for name, preprocess, encoder, decoder, postprocess in (
        ("res_mbconv", "bnswish bnswish", "bnswish bnswish", (5, 6), (5, 3)),
        ("mbconv_den", (5, 3, 8), (5, 6), (5, 6), (5, 3, 8)),
        ("res53_mbconv", "bnswish5 bnswish", "bnswish5 bnswish", (5, 6), (5, 3)),
        ("mbconv_res", (5, 3), (5, 6), "bnswish bnswish", "bnswish bnswish"),
    ):
        expected = [
            plans.ConvolutionBranch(tuple(each.split())) if isinstance(each, str) else plans.InvertedBranch(*each)
            for each in (preprocess, encoder, decoder, postprocess)
        ]
        assert plans.CELL_SETS[name] == tuple(expected)


CELLS = "cells_per_group_encoder", "cells_per_group_decoder", "preprocess_cells", "postprocess_cells"
CHANNELS = "num_channels_encoder", "num_channels_decoder", "num_mixtures", "num_classes", "image_height"
FAR_TOO_LARGE = r"model\.num_\*: at least [0-9,]{6,} (layers|weights), and a .*; use fewer"
REFUSALS = [
    *(({f"num_{name}": 10**6}, FAR_TOO_LARGE) for name in ("groups_per_scale", "flows", *CELLS)),
    *(({name: 10**9}, FAR_TOO_LARGE) for name in CHANNELS),
    ({"min_groups_per_scale": 2**62}, FAR_TOO_LARGE),
    ({"padded_width": 34}, "model.padded_width = 34: not divisible by 4"),
    ({"padded_height": 24}, "model.padded_height = 24: .* or smaller than the image's height of 32"),
    ({"num_preprocess_blocks": 2}, "num_postprocess_blocks = 1: must equal num_preprocess_blocks = 2"),
    ({"cell_set": "res_mbcov"}, "model.cell_set = 'res_mbcov'.*did you mean 'res_mbconv'"),
    ({"cell_set": "mbconv_den", "num_channels_decoder": 12}, "its postprocess cells widen 12 channels 3 times and cut"),
    ({"likelihood": "bernoulli", "num_bits": 8}, "num_bits = 8: the Bernoulli likelihood is for 1-bit images"),
    ({"image_channels": 5}, "model.image_channels = 5: the logistic mixture takes 1 to 4 channels"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSALS)
def test_what_does_not_fit_or_is_far_too_large_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plans.latent_plan(config(num_latent_scales=2, **settings))


@pytest.mark.parametrize(("settings", "frame"), [({"padded_height": 48, "padded_width": 48}, "48 x 48"), ({}, None)])
def test_a_frame_of_more_than_twice_the_pixels_is_warned_of_once(settings, frame):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for _ in range(2):
            plans.latent_plan(config(image_height=32, image_width=32, **settings))
    texts = [f"images of 32 x 32 are padded with zeros to {frame} (height x width), "] if frame else []
    assert [str(warning.message)[: len(text)] for warning, text in zip(warned, texts, strict=True)] == texts
