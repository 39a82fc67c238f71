"""Models that are conditional on classes."""

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.layers import FoldedPass, ForwardPass
from nvae_tf.models import training_step
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass, top_down_pass
from nvae_tf.models.top_down import ClassEmbedding
from nvae_tf.serving.signatures import Signatures
from tests import refuses
from tests.models.test_coding import near
from tests.tiny_model import images_of, shaken, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("few_power_iterations")
SETTINGS = dict(num_latent_scales=2, num_groups_per_scale=1, num_classes=3)
LABELS = [0, 1, 2, -1]


@pytest.fixture(scope="module")
def conditional():
    """A model whose classes differ."""
    return shaken(tiny_model(**SETTINGS, seed=0, label_dropout=0.1))


@pytest.fixture(scope="module")
def images():
    return images_of(tiny_config(**SETTINGS))[:4]


def tables(model):
    return [layer.table for layer in model._flatten_layers() if isinstance(layer, ClassEmbedding)]


@pytest.mark.slow
def test_a_new_model_does_not_depend_on_the_class_and_a_step_changes_that(images):
    model = tiny_model(**SETTINGS, seed=0)
    near(model.generate(4, seed=1, labels=LABELS), model.generate(4, seed=1), atol=0)
    model.compile(optimizer=nvae_tf.NVAEAdamax())
    model.train_step((tf.constant(images), tf.constant([0, 1, 1, 0])))
    # Of the state at both scales, and of the top group's prior and posterior.
    assert len(tables(model)) == 4
    for table in tables(model):
        assert [bool(np.any(row)) for row in table.numpy()] == [True, True, False]


def test_the_class_matters_to_priors_posteriors_and_decoder(conditional, images):
    noise = noise_per_image(conditional.plan.latent_shapes(), image_seeds(1, 4))
    passes = (ForwardPass(labels=tf.fill([4], label)) for label in (0, 1))
    one, other = (inference_pass(conditional, images, noise, each) for each in passes)
    for a, b in zip(one.latents, other.latents, strict=True):
        assert np.abs(a.prior.loc - b.prior.loc).max() > 1e-3 and np.abs(a.posterior.loc - b.posterior.loc).max() > 1e-3
    z = conditional.encode(images, labels=0)
    assert np.abs(conditional.decode(z, labels=0) - conditional.decode(z, labels=1)).max() > 1e-3
    near(conditional.decode(z, labels=0), conditional(images, labels=0))


def test_an_image_depends_on_its_own_label_and_minus_one_is_none(conditional, images):
    together = conditional.score(images, labels=LABELS)
    for place, label in enumerate(LABELS):
        # The same draws: image number `place`.
        near(together[place], conditional.score(images, labels=None if label < 0 else label)[place], atol=1e-3)
    drawn = conditional.generate(4, labels=LABELS, seed=2)
    near(drawn[3], conditional.generate(4, seed=2)[3])
    assert np.abs(drawn[0] - conditional.generate(4, seed=2)[0]).max() > 1e-3


def test_guidance_goes_from_no_class_through_the_class_and_beyond(conditional):
    labels, draw = tf.constant([0, 1, 2]), conditional.generate
    near(draw(3, labels=labels, guidance=1.0 + 1e-6), draw(3, labels=labels), atol=1e-4)
    # The latents are drawn without a class then, decoded for the class.
    noise = noise_per_image(conditional.plan.latent_shapes(), image_seeds(0, 3))
    z = []
    for _ in conditional.plan.latent_shapes():
        given = z + [tf.zeros_like(eps) for eps in noise[len(z) :]]
        from_no_class = top_down_pass(conditional, [nvae_tf.models.latents.GivenSource(latent) for latent in given], 3)
        prior = from_no_class.latents[len(z)].prior
        z.append(prior.loc + prior.scale * noise[len(z)])
    near(draw(3, labels=labels, guidance=0.0), conditional.decode(z, labels=labels))
    assert np.abs(draw(3, labels=labels, guidance=3.0) - draw(3, labels=labels)).max() > 1e-3


def test_classes_are_as_probable_as_their_bounds_say(conditional, images):
    probabilities = conditional.classify(images, batch_size=3)
    bounds = np.stack([conditional.score(images, labels=label, per_group=True).nelbo for label in range(3)], axis=1)
    weights = np.exp(bounds.min(axis=1, keepdims=True) - bounds)
    near(probabilities, weights / weights.sum(axis=1, keepdims=True), atol=1e-4)
    # Of several draws the mean bound counts.
    noise = noise_per_image(conditional.plan.latent_shapes(), image_seeds(0, len(images)), 1)
    passes = [FoldedPass(labels=tf.fill([len(images)], label)) for label in range(3)]
    second = np.stack([inference_pass(conditional, images, noise, one).elbo(images).nelbo for one in passes], axis=1)
    near(conditional.classify(images, samples=2, batch_size=3), tf.nn.softmax(-(bounds + second) / 2), atol=1e-4)
    near(tf.function(conditional.classify)(images[:1]), probabilities[:1], atol=1e-4)
    refuses("samples = 0: must be a whole number from 1", conditional.classify, images, samples=0)


def test_labels_are_dropped_by_chance_the_same_for_an_image_whatever_the_batches():
    model = nvae_tf.NVAE(tiny_config(**SETTINGS), label_dropout=0.25)
    labels = tf.range(2000) % 3
    kept = training_step.kept_labels(model, labels, 7).numpy()
    assert abs(np.mean(kept == -1) - 0.25) < 0.05 and np.all((kept == -1) | (kept == labels))
    parts = [training_step.kept_labels(model, labels[i * 500 :][:500], 7, i * 500) for i in range(4)]
    assert np.array_equal(np.concatenate(parts), kept)
    assert np.any(training_step.kept_labels(model, labels, 8) != kept)


@pytest.mark.slow
def test_fit_takes_pairs(images):
    model = tiny_model(**SETTINGS, seed=0)
    model.compile(optimizer=nvae_tf.NVAEAdamax(), jit_compile=False)
    labels = np.array([[0], [1], [2], [0]])
    assert np.isfinite(model.fit(images, labels[:, 0], batch_size=4, verbose=0).history["loss"][0])
    scores = model.evaluate(images, labels, verbose=0, return_dict=True)
    assert scores["loss"] != model.evaluate(images, (labels + 1) % 3, verbose=0, return_dict=True)["loss"]
    pairs = tf.data.Dataset.from_tensors((images, labels[:, 0]))
    near(model.predict(pairs, verbose=0), model(images, labels=labels[:, 0]))
    with pytest.raises(ValueError, match="^labels must be numbers of classes, 0 to 2, and -1 is none$"):
        model.fit(images, np.arange(4), batch_size=4, verbose=0)
    refuses("not one-hot", model.fit, images, np.eye(4, 3, dtype="int32"), batch_size=4, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), [("generate", 7), ("score", -9), ("encode", 3), ("train_step", 2**32 + 1)])
def test_labels_are_asserted_in_graphs(images, name, label):
    model = tiny_model(nvae_tf.NVAEAdamax(), **SETTINGS)

    def call(labels):
        if name == "train_step":
            return model.train_step((tf.constant(images), labels))
        return getattr(model, name)(4 if name == "generate" else images, labels=labels)

    with pytest.raises(tf.errors.InvalidArgumentError, match="labels must be numbers of classes, 0 to 2, and -1 is no"):
        tf.function(call, autograph=False)(tf.constant([0, label, 1, 2], tf.int64))
    assert int(model.optimizer.iterations) == 0


REFUSALS = [
    *(({"labels": bad}, "labels must be numbers of classes, 0 to 2") for bad in (5, -9, np.uint64(2**64 - 1))),
    ({"labels": np.eye(3)}, "not one-hot vectors"),
    ({"labels": [0, None, 1]}, "labels must be numbers in an array or a tens"),
    ({"labels": [1, 1]}, "one for each of 3 images"),
    ({"labels": 0.5}, "labels are float32 .* must be whole numbers"),
    ({"guidance": 2.0}, "give labels too"),
]


def test_labels_that_do_not_fit_and_guidance_where_training_dropped_no_labels_are_refused(conditional, images):
    for settings, message in REFUSALS:
        refuses(message, conditional.generate, 3, **settings)
    refuses("give \\(images, labels\\), not images alone", conditional.train_step, tf.constant(images))
    for settings in ({"labels": 1}, {"guidance": 2.0}):
        refuses("this model has no classes", tiny_model(num_classes=0).generate, 3, **settings)
    refuses("more than one", tiny_model, num_latent_scales=1, num_groups_per_scale=1, num_classes=3)
    model = tiny_model(**SETTINGS)
    assert {spec.name for spec in Signatures(model).input_specs("compose")}.isdisjoint({"guidance", "proposals"})
    refuses("^guidance = 2.0: this model was trained without label_dropout", model.generate, 3, labels=1, guidance=2.0)
