import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from nvae_tf.latent_plan import feature_names
from nvae_tf.models.latents import GivenSource, active_channels, batch_noise, image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass, top_down_pass
from nvae_tf.objective import kl_per_channel
from tests import refuses
from tests.tiny_model import PADDED, flat, images_of, shaken, tiny_model

SHAPES = [(4, 4, 2), (8, 8, 2), (8, 8, 2)]


def near(value, expected, atol=1e-5):
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=atol)


def test_the_channels_of_the_largest_kl():
    kl = np.array([[0.3, 0.0, 5.0], [0.0, 2.0, 0.0]])
    for fraction, places in ((0.1, [2]), (0.5, [0, 2, 4]), (0.7, [0, 1, 2, 4])):
        assert np.flatnonzero(active_channels(kl, fraction)).tolist() == places
    for fraction in (0.0, 2.0, np.nan):
        refuses(f"^fraction = {fraction}: must be above 0 and at most 1$", active_channels, kl, fraction)


@pytest.mark.slow
def test_encoding_with_active_channels_only(model, images):
    """The others are at the prior's mean given the groups above, as they are encoded."""
    mask = np.array([[True, False], [False, True], [False, False]])
    z, plain = (model.encode(images, seed=3, active_only=kept) for kept in (mask, False))
    np.testing.assert_array_equal(z[0][..., 0], plain[0][..., 0])
    priors = top_down_pass(model, [GivenSource(latent) for latent in z], 4).latents
    for latent, given, kept in zip(z, priors, mask, strict=True):
        near(latent.numpy()[..., ~kept], given.prior.loc.numpy()[..., ~kept])
    assert np.max(np.abs(z[1][..., 1] - priors[1].prior.loc[..., 1])) > 1e-3
    noise = noise_per_image(SHAPES, image_seeds(3, 4))
    kl = kl_per_channel(inference_pass(model, images, noise).latents).numpy().mean(axis=0)
    # One of six channels is the tenth.
    expected = model.encode(images, seed=3, active_only=np.arange(6).reshape(3, 2) == np.argmax(kl))
    in_graph = tf.function(lambda images: model.encode(images, seed=3, active_only=True))
    for latent, other in zip(in_graph(images), expected, strict=True):
        near(latent, other)


def test_features_are_the_posteriors_means_in_units_of_the_priors_sigma(model, images):
    each = [(group.mean / group.prior_scale).numpy() for group in model.infer(images, mean=True)]
    features, names = model.features(images), feature_names(model.plan)
    near(features, np.concatenate([one.reshape(4, -1) for one in each], axis=1))
    near(features[:, names.index("group1_y7_x2_c1")], each[1][:, 7, 2, 1])
    pooled = model.features(images, groups=[2, 0], pool="mean", batch_size=3)
    near(pooled, np.concatenate([each[group].mean(axis=(1, 2)) for group in (2, 0)], axis=1))
    assert feature_names(model.plan, [2, 0], "mean") == ["group2_c0", "group2_c1", "group0_c0", "group0_c1"]
    for wrong, message in (
        (dict(groups=[0, 3]), "groups = 3: must be a whole number from 0 to 2"),
        (dict(groups="top"), "groups = 'top': not \"all\", nor a list of numbers"),
        (dict(groups=1), 'groups = 1: give "all", or a list'),
        (dict(groups=[]), r'groups = \[\]: give "all", or a list'),
        (dict(pool="max"), "pool = 'max': must be None or"),
    ):
        refuses(message, model.features, images, **wrong)


def zeros(*counts, bad=0.0):
    latents = [np.full((count, *shape), bad) for count, shape in zip(counts, SHAPES, strict=False)]
    return {"latents": latents}


def heat(value):
    return {"count": 1, "temperature": value}


def gray(value, kind=np.float32):
    return {"images": np.full([1, 6, 6, 1], value, kind)}


REFUSALS = [
    ("decode", zeros(3, 3), r"latents have shapes .* this model's are \[\(4, 4, 2\), \(8, 8, 2\)"),
    ("decode", zeros(3, 3, 3, bad=np.nan), "latents of group 0 are not all finite"),
    ("decode", {"latents": np.ones(3)}, "latents are one .*; give a list, one array a group"),
    *(("generate", heat(bad), "temperature = .*: must be greater than 0") for bad in (0.0, [0.5, -1], 1j)),
    ("generate", heat([0.7] * 4), "4 temperatures: .* the 2 scales .* the 3 groups"),
    ("generate", {"count": 0}, "count = .*: must be a whole number from 1 to 2147483647"),
    *(("encode", {"seed": seed}, "seed = .*: must be a whole number") for seed in (2**32, tf.constant(1.5))),
    ("encode", {"active_only": np.ones(3, bool)}, r"active_only has shape \[3\]: must be \[3, 2\]"),
    ("encode", {"active_only": np.full((3, 2), np.nan)}, "has values other than False and True"),
    ("score", {"importance_samples": 2**24 + 1}, "importance_samples = .* 1 to 16777216"),
    ("score", {"importance_samples": 2, "per_group": True}, "per_group with importance_samples = 2"),
    ("score", {"images": np.zeros([6, 6, 1])}, r"shape \(6, 6, 1\); .*, 6, 6, 1\]: a single image needs a batch axis"),
    ("score", {"images": np.zeros([0, 6, 6, 1])}, "there are no images: give at least one"),
    ("score", gray(np.inf), r"images have values from inf to inf; they must be in \[0, 1\]:"),
    ("score", gray(1.002, np.float16), r"values from 1.00195 to 1.00195; .* in \[0, 1\]:"),
    ("score", gray(np.nan), r"^images have NaN \(not a number\) among their values: look"),
    ("score", {"images": tf.sparse.from_dense(np.eye(3))}, "images must be numbers .*, not SparseTensor"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line(model, images, name, arguments, message):
    images = {} if name in ("generate", "decode") else {"images": images}
    refuses(message, getattr(model, name), **images | arguments)


def test_a_model_of_one_bit_scores_no_gray_image(model, images):
    near(model(0.5 * images), model.decode(model.encode(0.5 * images)))
    # The next number to 1 of half precision is a rounded 1.
    for rounded in (np.float16(images) * np.float16(1.001), images > 0):
        near(model.score(rounded), model.score(images), atol=0.1)
    for refuse in (model.score, model.outlier_score):
        refuses("^images have values other than 0 and 1; this model scores images of 1 b", refuse, 0.5 * images)
    with pytest.raises(tf.errors.InvalidArgumentError, match="images have values other than 0 and 1"):
        tf.function(model.score, autograph=False)(tf.constant(0.5 * images))


def test_temperatures_may_differ_by_scale_and_by_group(model):
    equal = model.generate(2, 0.7, seed=1)
    for several in ([0.7] * 3, np.array([0.7, 0.7]), tf.constant([0.7, 0.7]), tf.constant(0.7)):
        near(model.generate(2, several, seed=1), equal)
    np.testing.assert_array_equal(model.generate(2, [0.5, 0.9], seed=1), model.generate(2, [0.5, 0.9, 0.9], seed=1))
    assert np.max(np.abs(model.generate(2, [0.7, 0.7, 0.5], seed=1) - equal)) > 1e-4


def test_what_is_inferred_is_posterior_prior_and_kl(model, images):
    groups = model.infer(images, seed=3)
    decoded = inference_pass(model, images, noise_per_image(SHAPES, image_seeds(3, 4)))
    for group, (z, _, prior, posterior, *_) in zip(groups, decoded.latents, strict=True):
        for found, expected in zip(group, (z, posterior.loc, posterior.scale, prior.loc, prior.scale), strict=False):
            near(found, expected)
    parts = model.score(images, seed=3, per_group=True)
    near(np.stack([np.sum(group.kl, axis=(1, 2, 3)) for group in groups], axis=1), parts.kl, atol=1e-4)
    near(parts.nelbo, decoded.elbo(images).nelbo, atol=1e-4)


@pytest.mark.slow
def test_graphs_of_batches_are_kept_and_follow_the_weights(monkeypatch):
    model = shaken(tiny_model(num_classes=3, label_dropout=0.1))
    images, forward, traced = images_of(model.config), model.top_down.run, []
    monkeypatch.setattr(model.top_down, "run", lambda *given: traced.append(given) or forward(*given))
    latents = model.encode(images)
    calls = (
        lambda **how: model.generate(5, 0.7, 3, labels=1, guidance=2.0, **how),
        lambda **how: model.encode(images, 3, active_only=True, **how)[1],
        lambda **how: model.decode(latents[:1], [0.5, 0.7], **how),
        lambda **how: model.score(images, 2, labels=1, **how),
        lambda **how: model.score(images, per_group=True, **how).nelbo,
        lambda **how: model.infer(images, **how)[0].kl,
        lambda **how: model.classify(images, **how),
        lambda **how: model.outlier_score(images, **how).nelbo_at_mean,
    )
    first = [call(batch_size=3) for call in calls]
    traced.clear()
    # Masks of channels are no constants of a graph.
    model.encode(images[:2], labels=2, active_only=np.eye(2, dtype=bool), batch_size=1)
    model.encode(images[:2], labels=2, active_only=~np.eye(2, dtype=bool), batch_size=1)
    assert len(traced) == 1
    shaken(model)
    again = [call(batch_size=3) for call in calls]
    assert len(traced) == 1
    for call, after, before in zip(calls, again, first, strict=True):
        near(after, call(), atol=1e-3)
        assert np.abs(after - before).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("likelihood, bits", [("bernoulli", 1), ("logistic_mixture", 3), ("normal", 8)])
def test_pixels_are_drawn_from_the_likelihood_by_the_seed_of_each_image(likelihood, bits):
    model = shaken(tiny_model(**PADDED, likelihood=likelihood, num_bits=bits, image_channels=3))
    drawn = model.generate(5, seed=3, mean=False)
    assert drawn.shape == (5, 6, 6, 3) and np.all((drawn >= 0.0) & (drawn <= 1.0))
    if likelihood != "normal":
        levels = drawn * (2**bits - 1)
        near(levels, np.round(levels), atol=1e-4)
    near(model.generate(5, seed=3, mean=False, batch_size=2), drawn)
    assert np.abs(model.generate(5, seed=4, mean=False) - drawn).max() > 0.1
    if likelihood == "bernoulli":  # others are clipped or rounded, and their mean is the mean before
        parameters = tf.random.stateless_normal([1, 6, 6, 3], (1, 2))
        many = tf.function(model.likelihood.sample)(tf.repeat(parameters, 2000, axis=0), image_seeds(0, 2000))
        distribution = model.likelihood.distribution(parameters)
        errors = (np.mean(many, axis=0) - distribution.mean()[0]) / np.sqrt(distribution.variance()[0] / 2000)
        assert np.mean(errors**2) == pytest.approx(1.0, abs=0.6) and np.abs(errors).max() < 5.0


def test_latents_go_through_tf_data_and_become_arrays(model, images):
    """A seed of 64 bits is none that wraps around."""
    batches = tf.data.Dataset.from_tensors(images).repeat(2).enumerate()
    for number, latents in enumerate(batches.map(lambda number, images: model.encode(images, seed=number))):
        for array, expected in zip(latents.numpy(), model.encode(images, seed=number), strict=True):
            assert isinstance(array, np.ndarray)
            near(array, expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="seed must be a whole number from -2147483647"):
        tf.function(lambda seed: image_seeds(seed, 2), autograph=False)(tf.constant(2**32 + 5, tf.int64))


def test_the_summary_counts_every_weight_once(model):
    lines = []
    model.summary(print_fn=lines.append)
    counts = [int(word.replace(",", "")) for line in lines[1:] for word in line.split()[-3::2]]
    total = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert f": 3 latent groups, {total:,} weights" in lines[0]
    # The start of the decoder belongs to no scale.
    assert sum(counts) == total - int(np.prod(model.top_down.start.shape))


NOISE_SHAPES = ((2, 3, 4), (4, 6, 4), (4, 6, 4))


# The draws of a number of images, or samples, for a seed and a step.
DRAWS = {
    "batch": lambda count, seed=2, step=0: batch_noise(NOISE_SHAPES, count, (seed, step)),
    "per image": lambda count, seed=2, step=0: noise_per_image(NOISE_SHAPES, image_seeds(seed, count, first=step)),
    "samples": lambda count, seed=2, step=0: noise_per_image(NOISE_SHAPES, image_seeds(seed, 1), step, count),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_draws_are_standard_normal_independent_and_a_function_of_seed_and_step(kind):
    draw = DRAWS[kind]
    noise = draw(300)
    assert [tuple(each.shape) for each in noise] == [(300, *shape) for shape in NOISE_SHAPES]
    drawn = flat(noise)
    assert scipy.stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    for rows in (drawn.T, drawn):
        assert np.max(np.abs(np.corrcoef(rows) - np.eye(len(rows)))) < 6.0 / np.sqrt(rows.shape[1])
    drawn = flat(draw(4))
    np.testing.assert_array_equal(flat(draw(4)), drawn)
    np.testing.assert_array_equal(flat(tf.function(draw)(4)), drawn)
    for settings in (dict(seed=0), dict(seed=-1), dict(seed=2**31 - 1), dict(step=7)):
        assert np.all(np.any(flat(draw(4, **settings)) != drawn, axis=1))


def test_the_draw_of_an_image_does_not_depend_on_its_batch():
    np.testing.assert_array_equal(image_seeds(7, 2, first=4), [[7, 4], [7, 5]])
    many, seeds = flat(noise_per_image(NOISE_SHAPES, image_seeds(3, 6))), image_seeds(3, 6)
    np.testing.assert_array_equal(flat(noise_per_image(NOISE_SHAPES, image_seeds(3, 2, first=4))), many[4:])
    np.testing.assert_array_equal(flat(noise_per_image(NOISE_SHAPES, seeds[::-1]))[::-1], many)
    # The numbers that older exports and scores were made with.
    seeds = [[3, 0], [-1, 5], [2**31 - 1, -7]]
    plain = [tf.random.stateless_normal([many.shape[1]], seed, alg="philox") for seed in seeds]
    np.testing.assert_array_equal(flat(noise_per_image(NOISE_SHAPES, tf.constant(seeds))), plain)
    # Of a batch it depends on the place.
    whole, last = flat(batch_noise(NOISE_SHAPES, 6, (3, 0))), flat(batch_noise(NOISE_SHAPES, 2, (3, 0), first=4))
    np.testing.assert_array_equal(last, whole[4:])
