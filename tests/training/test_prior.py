"""Learning a reweighted prior: against a ratio that is known, and of a run folder."""

import math
import shutil
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal
from nvae_tf.models.latents import InferredGroup
from nvae_tf.models.reweighted_prior import CHANCE, ReweightedPrior, made_ratios
from nvae_tf.progress import StatusLine
from nvae_tf.reports.publishing import write_shared_run
from nvae_tf.runs.companions import prior_text, read_about, write_prior
from nvae_tf.runs.loading import load_run
from nvae_tf.training import prior as module
from nvae_tf.training.prior import Posteriors, learn_prior
from tests import refuses
from tests.models.test_coding import near
from tests.tiny_model import shaken, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A run folder with a reweighted prior of both of its groups, and what its file says."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(finished_run[0], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DRAWS", 3000)
        return folder, learn_prior(folder, groups=2, steps=60, proposals=10, importance_samples=3)


def test_classifiers_learn_the_ratio_of_posteriors_to_prior():
    """Posteriors of all images: the top group's N(1, 0.5); below it the prior, or N(2, 1) by a number above."""
    count, model = 4000, tiny_model()
    random, shapes = np.random.default_rng(0), model.plan.latent_shapes()
    zeros, ones = ([tf.fill([count, *shape], value) for shape in shapes] for value in (0.0, 1.0))
    top = tf.constant(random.normal(1.0, 0.5, [count, *shapes[0]]), tf.float32)
    shifted = zeros[1] + 2.0 * tf.cast(top[:, :1, :1, :1] > 1.0, tf.float32)
    groups = [
        InferredGroup(top, ones[0], 0.5 * ones[0], zeros[0], ones[0], None),
        InferredGroup(shifted, shifted, ones[1], zeros[1], ones[1], None),
    ]
    reweighted = ReweightedPrior(made_ratios("classifier", 2, model.plan, 0), 10)
    rows = Posteriors(groups, None, [[], []])
    module._train(reweighted, rows, 300, 0, StatusLine())
    # Half of the pairs of the lower group can't be told apart; a third more is lost without the latents above.
    top_loss, lower_loss = module._cross_entropy(reweighted, rows, 1)
    assert top_loss < 0.5 and 0.5 * CHANCE - 0.02 < lower_loss < 0.58 * CHANCE, (top_loss, lower_loss)
    # Along a line on which the log ratio goes through 0.
    z = tf.reshape(tf.constant([0.0, 0.4, 1.0])[:, None] * tf.ones([3, 8]), [1, 3, 2, 2, 2])
    standard = SoftClampedNormal(zeros[0][:1], ones[0][:1])
    actual = reweighted.log_ratio(0, z, standard, [])[0]
    posterior = SoftClampedNormal(1.0, 0.5)
    expected = tf.reduce_sum(posterior.log_prob(z) - SoftClampedNormal(0.0, 1.0).log_prob(z), axis=(2, 3, 4))[0]
    assert np.all(np.diff(actual) > 0.0) and abs(actual[2] - expected[2]) < 2.0, (actual, expected)


def test_what_is_learned_is_loaded_with_the_model_and_said_and_shared(run, tmp_path):
    folder, about = run
    assert read_about(folder / "prior.npz") == (60, about) and about["images"] == 1400
    assert len(about["cross_entropy"]) == len(about["effective_proposals"]) == 2
    # A model that is hardly trained has a prior with holes.
    assert about["cross_entropy"][0] < CHANCE and all(1.0 <= count <= 10.0 for count in about["effective_proposals"])
    model = nvae_tf.load(folder)
    assert model.reweighted_prior.about == about
    assert np.abs(model.generate(3, seed=1, prior="reweighted") - model.generate(3, seed=1)).max() > 1e-3
    text = prior_text(about)
    assert text.startswith("classifier of the top 2 groups: cross-entropy of test images ") and "log Z" in text
    write_shared_run(folder, tmp_path / "shared", "hf://me/tiny")
    assert nvae_tf.load(tmp_path / "shared").reweighted_prior.about == about
    card = (folder / "README.md").read_text()
    assert f"| reweighted prior | {text} |" in card and 'prior="reweighted"' in card


def test_the_bound_is_that_of_the_model_where_the_ratio_is_constant(run):
    folder, _ = run
    model = nvae_tf.load(folder)
    constant = ReweightedPrior((lambda whitened, context: 0.0 * whitened[:, :, 0, 0, 0] + 0.7,), 10)
    measured = module._log_normalizers(model, constant, 0)
    near(measured["log_normalizers"], [0.7], atol=1e-5)
    constant.about.update(measured)
    images = np.float32(np.random.default_rng(0).integers(0, 2, (3, 16, 16, 1)))
    bounds = module._bounds(model, constant, [images[:2], images[2:]], 4, seed=5)
    expected = np.mean(model.score(images, importance_samples=4, seed=5))
    near([bounds["model"], bounds["reweighted"]], [expected] * 2, atol=1e-3)


def test_the_normalizer_is_the_mean_ratio_of_each_class_and_effective_proposals_are_those_of_all():
    conditional = tiny_model(num_classes=3)

    def ratio(whitened, context):
        return whitened[:, :, 0, 0, 0] + context[-1][:, 0, 0, :1]

    measured = module._log_normalizers(conditional, ReweightedPrior((ratio,), 10, 3), 0)
    # The mean of exp(e) is exp(1 / 2), and class 0 has a factor of exp(1).
    errors = np.abs(np.array(measured["log_normalizers"]) - [1.5, 0.5, 0.5])
    assert np.all(errors < 4.0 * np.array(measured["log_normalizer_errors"])) and np.all(errors < 0.1)

    def decides_in_class_0(whitened, context):
        return 100.0 * whitened[:, :, 0, 0, 0] * context[-1][:, 0, 0, :1]

    # Of class 0 about one is chosen from, of the other classes all.
    (count,) = module._effective_proposals(conditional, ReweightedPrior((decides_in_class_0,), 10, 3), 0)
    assert 6.94 < count < 7.33


def test_a_prior_of_other_weights_or_a_damaged_one_is_refused_when_it_is_asked_for(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    file, own_run = folder / "prior.npz", load_run(run[0])
    write_prior(file, shaken(load_run(run[0]).model), 50, own_run.model.reweighted_prior)
    model, again = nvae_tf.load(folder), f"make it anew by `nvae-prior --workdir={folder}`"
    assert model.generate(2).shape == (2, 16, 16, 1)
    with pytest.raises(ValueError, match=f"of other weights, from step 50; the model is of step 60; {again}"):
        model.generate(2, prior="reweighted")
    write_shared_run(folder, tmp_path / "shared", "hf://me/tiny")
    assert not (tmp_path / "shared" / "prior.npz").exists()
    file.write_bytes(file.read_bytes()[:-50])
    refuses(f"prior.npz: damaged, .*; {again}", nvae_tf.load(folder).generate, 2, prior="reweighted")
    # It is of the weights, whatever step they are called.
    write_prior(file, own_run.model, 50, own_run.model.reweighted_prior)
    assert nvae_tf.load(folder).reweighted_prior.about == run[1]


def test_a_mixture_of_as_many_images_as_fit(run, tmp_path, monkeypatch, free_memory, capsys):
    monkeypatch.setattr(module, "_COMPONENTS", 2)
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    text = prior_text(learn_prior(folder, kind="mixture", importance_samples=2))
    assert text.startswith("mixture of 2 Gaussians of the top group; importance-weighted bound of 360 test images")
    model = nvae_tf.load(folder)
    assert np.abs(model.generate(3, prior="reweighted") - model.generate(3)).max() > 1e-3
    refuses("groups = 2: a mixture is of the top group alone", learn_prior, folder, groups=2, kind="mixture")
    # Bounds may take long: the prior stays where they are interrupted. Twice five numbers of four bytes for each value
    # of the top group, of 100 images, are a quarter of the memory.
    monkeypatch.setattr(module, "_bounds", mock.Mock(side_effect=KeyboardInterrupt))
    free_memory(4 * 2 * 5 * 4 * math.prod(model.plan.latent_shapes()[0]) * 100)
    with pytest.raises(KeyboardInterrupt):
        learn_prior(folder, kind="mixture", importance_samples=2)
    about = read_about(folder / "prior.npz")[1]
    assert (about["kind"], about["images"]) == ("mixture", 100) and "bounds" not in about
    assert "learning from 100 of the 1,437 training images, which fit into the memory" in capsys.readouterr().out
