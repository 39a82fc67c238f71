"""The exported graph itself refuses input that makes no sense, and says which."""

import numpy as np
import pytest
import tensorflow as tf

SEEDS = np.array([5, 6], np.int64)
IMAGES = (np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3]) / 255).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_that_makes_no_sense_is_refused_by_the_export(run, temperature):
    with pytest.raises(tf.errors.InvalidArgumentError, match="temperature: values must be finite and above 0"):
        run("sample", seed=SEEDS, temperature=np.float32([1.0, temperature]))


@pytest.mark.parametrize("signature", ["encode", "reconstruct", "score"])
@pytest.mark.parametrize("value", [-0.01, 255.0, np.nan])
def test_an_image_out_of_range_is_refused_by_the_export(run, signature, value):
    images = IMAGES.copy()
    images[1, 2, 3, 0] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image: values must be finite and in \[0, 1\]"):
        run(signature, image=images, seed=SEEDS)


def test_a_latent_that_is_not_finite_is_refused_by_the_export(run):
    latent = run("encode", image=IMAGES, seed=SEEDS)["latent"]
    latent[0, 0] = np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match="latent: values must be finite"):
        run("decode", latent=latent)


def test_one_seed_for_many_rows_is_refused_by_the_export(run):
    with pytest.raises(tf.errors.InvalidArgumentError, match="seed: there must be one for each row of image"):
        run("encode", image=IMAGES, seed=SEEDS[:1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="one for each row of temperature"):
        run("sample", seed=SEEDS, temperature=np.ones(1, np.float32))


@pytest.mark.parametrize("number", [-1, 3])
def test_a_number_of_groups_that_the_model_does_not_have_is_refused_by_the_export(run, number):
    latent = run("encode", image=IMAGES, seed=SEEDS)["latent"]
    ones = np.ones(2, np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="num_groups: values must be from 0 to 2"):
        run("decode_upper_groups", latent=latent, num_groups=np.int32([1, number]), seed=SEEDS, temperature=ones)


def refusal(run, content):
    """What the export says of a file in the place of a picture."""
    with pytest.raises(tf.errors.InvalidArgumentError) as refused:
        run("encode_png", image_bytes=np.array([content, content], object), seed=SEEDS)
    return str(refused.value)


def test_bytes_that_are_no_picture_of_the_models_size_are_refused_by_the_export(run):
    picture = tf.io.encode_png(np.zeros([8, 8, 3], np.uint8)).numpy()
    assert run("encode_png", image_bytes=np.array([picture] * 2, object), seed=SEEDS)["latent"].shape[0] == 2
    wide = tf.io.encode_png(np.zeros([8, 9, 3], np.uint8)).numpy()
    assert "must be of size [8, 8]" in refusal(run, wide) and "[8 9]" in refusal(run, wide)
    for content in (b"no picture", b"", tf.io.encode_jpeg(np.zeros([8, 8, 3], np.uint8)).numpy()):
        assert "image_bytes: must be PNG files" in refusal(run, content)
    refusal(run, picture[:40])


def test_a_picture_is_refused_by_what_its_header_says_before_it_is_decoded(run):
    # The size is told by the header alone: nothing behind it could be decoded.
    header = tf.io.encode_png(np.zeros([8, 8, 3], np.uint8)).numpy()[:16] + np.array([2000, 1000], ">i4").tobytes()
    assert "[1000 2000]" in refusal(run, header)


def test_a_temperature_beyond_all_sense_is_refused_by_the_export(run):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image: not finite; a temperature or a latent is too"):
        run("sample", seed=SEEDS, temperature=np.float32([1.0, 3e38]))
