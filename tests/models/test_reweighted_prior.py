"""Draws from a reweighted prior, with ratios that are known."""

import math

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.models import reweighted_prior as module
from nvae_tf.models.latents import image_seeds, temperatures_of_groups
from nvae_tf.models.passes import top_down_pass
from nvae_tf.models.reweighted_prior import Mixture, ResidualConvolutions, ReweightedPrior, made_ratios
from tests import refuses
from tests.models.test_coding import near
from tests.tiny_model import shaken, tiny_model

TILT = 1.0


def tilt(whitened, context):
    """Times `exp(e)` of the first number e, a standard normal prior is one with mean 1."""
    return TILT * whitened[:, :, 0, 0, 0]


@pytest.fixture(scope="module")
def model():
    """Two groups on two scales."""
    return shaken(tiny_model(seed=0))


@pytest.fixture
def reweight(model):
    """`reweight(ratio, ...)`: the model, whose top groups have these ratios."""

    def attach(*ratios, proposals=20, of=model, classes=0):
        of.reweighted_prior = ReweightedPrior(ratios, proposals, classes)
        return of

    yield attach
    model.reweighted_prior = module.NONE_LEARNED


def latents_of(model, count, temperature=1.0, seed=0, labels=None):
    """The latents of generated images, and the sources that drew the top groups' latents."""
    temperatures = temperatures_of_groups(temperature, model.plan)
    sources = model.reweighted_prior.sources(image_seeds(seed, count), temperatures, model.plan, labels)
    zeros = [module.PriorSource(0.0)] * (model.plan.num_groups - len(sources))
    return top_down_pass(model, [*sources, *zeros], count).latents, sources


def test_samples_have_the_distribution_that_the_ratio_asks_for(reweight):
    tilted = reweight(tilt, proposals=200)

    @tf.function(autograph=False)
    def drawn_and_effective():
        latents, sources = latents_of(tilted, 500)
        return latents[0].z / latents[0].prior.scale, sources[0].drawn[0][1]

    drawn, effective = drawn_and_effective()
    drawn = np.reshape(drawn, [500, -1])
    # Of 500 draws with variance 1, but for what 200 proposals lack.
    np.testing.assert_allclose(drawn.mean(axis=0), [TILT] + [0.0] * 7, atol=0.15)
    np.testing.assert_allclose(drawn.std(axis=0), np.ones(8), atol=0.12)
    # The mean of r^2 over the squared mean of r is exp(1).
    assert 200 / math.e < np.mean(effective) < 1.2 * 200 / math.e


def test_a_ratio_of_one_leaves_the_prior_and_the_groups_below(reweight, model):
    _, sources = latents_of(reweight(lambda whitened, context: 0.0 * tilt(whitened, context)), 3)
    near(sources[0].drawn[0][1], [20.0] * 3)
    # Below the top group the noise is as in the model's own samples: with the same z above, the same image.
    reweight(tilt)
    latents = latents_of(model, 4, seed=2)[0]
    near(model.generate(4, seed=2, prior="reweighted"), model.decode([latents[0].z], temperature=1.0, seed=2))


def test_a_group_sees_whitened_proposals_and_what_is_above(reweight):
    seen = []

    def note(whitened, context):
        seen.append((whitened, context))
        return tilt(whitened, context)

    latents, sources = latents_of(reweight(note, note), 3, temperature=0.5)
    for (whitened, _), source, count in zip(seen, sources, (20, 10), strict=True):
        near(whitened, 0.5 * source.noise)
        # Fewer below the top group; half of them are the others' mirror images.
        assert whitened.shape[1] == count
        near(whitened[:, : count // 2], -whitened[:, count // 2 :])
    near(seen[1][1][0], latents[0].z)
    # At temperature 1, whatever the samples' temperature.
    near(seen[1][1][1], latents[1].prior.loc)
    near(tf.exp(seen[1][1][2]), 2.0 * latents[1].prior.scale)
    assert seen[0][1] == []


def test_the_classes_of_a_conditional_model_are_seen_and_drawn(reweight):
    def by_class(whitened, context):
        return tilt(whitened, context) * (4.0 * context[-1][:, 0, 0, :1] - 2.0)

    conditional = shaken(tiny_model(num_classes=3, seed=0))
    reweight(by_class, of=conditional, classes=3)
    labels = tf.constant([0, 1, -1] * 20)
    latents, sources = latents_of(conditional, 60, labels=labels)
    mean = tf.reshape(latents[0].z - latents[0].prior.loc, [20, 3, -1])[:, :, 0]
    assert np.all(np.mean(mean, axis=0)[1:] < -0.8) and np.mean(mean, axis=0)[0] > 0.8
    images = conditional.generate(6, labels=labels[:6], prior="reweighted")
    assert np.abs(images - conditional.generate(6, labels=0, prior="reweighted")).max() > 1e-3
    near(conditional.generate(6, labels=-1, prior="reweighted"), conditional.generate(6, prior="reweighted"))


def test_what_is_refused(reweight, model):
    for prior, message in (("reweighted", "no reweighted prior: nvae-prior"), ("other", "prior = 'other'")):
        refuses(message, model.generate, 2, prior=prior)
        refuses(message, readjusted, model, 0.7, 1, prior=prior)
    conditional = reweight(tilt, of=tiny_model(num_classes=3, label_dropout=0.1), classes=3)
    with pytest.raises(ValueError, match="it takes no guidance and no latents"):
        conditional.generate(2, labels=0, guidance=2.0, prior="reweighted")


@pytest.mark.parametrize("most", [1000, 1])
def test_classifiers_see_each_proposal_by_itself_and_its_context(model, most, monkeypatch):
    monkeypatch.setattr(module, "MOST_FOR_PERCEPTRON", most)
    ratios = made_ratios("classifier", 2, model.plan, 3)
    assert all(isinstance(ratio, ResidualConvolutions) == (most == 1) for ratio in ratios)
    reweighted = ReweightedPrior(ratios, 5, 3)
    random = np.random.default_rng(0)
    z, above = (np.float32(random.normal(size=size)) for size in ([2, 5, 4, 4, 2], [2, 2, 2, 2]))
    prior = SoftClampedNormal(tf.fill([2, 4, 4, 2], 0.5), tf.fill([2, 4, 4, 2], 2.0))
    found = reweighted.log_ratio(1, z, prior, [above], tf.constant([0, -1]))
    prior_of_second = SoftClampedNormal(prior.loc[1:], prior.scale[1:])
    single = reweighted.log_ratio(1, z[1:, 3:4], prior_of_second, [above[1:]])
    near(found[1:, 3:4], single, atol=1e-5)
    for changed in ((z, [above + 1.0], [0, -1]), (z + 1.0, [above], [0, -1]), (z, [above], [1, 1])):
        assert np.all(np.abs(found - reweighted.log_ratio(1, changed[0], prior, *map(tf.constant, changed[1:]))) > 1e-6)


@pytest.mark.slow
def test_a_mixture_has_the_densities_of_scikit_learn_and_is_drawn_from(reweight, model):
    from sklearn.mixture import GaussianMixture

    random = np.random.default_rng(0)
    data = np.concatenate([random.normal(size=(80, 8)), random.normal(2.0, 0.5, (80, 8))])
    fitted = GaussianMixture(2, random_state=0).fit(data)
    mixture = Mixture(2, 8)
    mixture.set_weights([np.log(fitted.weights_), fitted.means_, np.linalg.cholesky(fitted.covariances_)])
    of_normal = -0.5 * (data**2).sum(axis=1) - 4.0 * np.log(2.0 * np.pi)
    found = mixture(tf.constant(data.reshape(40, 4, 2, 2, 2), tf.float32), [])
    near(np.ravel(found), fitted.score_samples(data) - of_normal, atol=1e-3)
    # Drawn by its source, at a temperature that multiplies the components' sigma.
    reweight(mixture)
    at_one, at_means = (
        np.reshape(drawn / (1.0 + 0.01), [600, 8])
        for drawn in tf.function(lambda: [latents_of(model, 600, heat)[0][0].z for heat in (1.0, 1e-3)])()
    )
    weights, means = fitted.weights_[:, np.newaxis], fitted.means_
    variance = (weights * (np.diagonal(fitted.covariances_, axis1=1, axis2=2) + means**2)).sum(axis=0)
    np.testing.assert_allclose(at_one.mean(axis=0), (weights * means).sum(axis=0), atol=0.2)
    np.testing.assert_allclose((at_one**2).mean(axis=0), variance, rtol=0.2)
    assert np.abs(at_means[:, np.newaxis] - means).max(axis=2).min(axis=1).max() < 0.01
