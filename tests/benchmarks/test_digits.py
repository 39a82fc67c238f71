import itertools

import numpy as np

from benchmarks.digits import MixtureOfBernoullis, digits

TRUE_MEANS = np.array([[0.9] * 6 + [0.1] * 6, [0.1] * 6 + [0.9] * 6])


def drawn(count):
    random = np.random.RandomState(0)
    components = random.choice(2, count, p=[0.3, 0.7])
    return (random.rand(count, 12) < TRUE_MEANS[components]).astype(np.float32)


def test_em_finds_the_components():
    mixture = MixtureOfBernoullis(2).fit(drawn(4000))
    order = np.argsort(-mixture.means[:, 0])
    np.testing.assert_allclose(mixture.means[order], TRUE_MEANS, atol=0.05)
    np.testing.assert_allclose(np.exp(mixture.log_weights[order]), [0.3, 0.7], atol=0.05)


def test_it_is_a_distribution():
    mixture = MixtureOfBernoullis(3).fit(drawn(100))
    everything = np.array(list(itertools.product([0.0, 1.0], repeat=12)), np.float32)
    masses = [np.exp(-mixture.negative_log_likelihood(image[None])) for image in everything]
    assert abs(sum(masses) - 1.0) < 1e-3


def test_the_data_set_is_the_digits():
    images, labels = digits("train")
    assert images.shape == (1437, 16, 16, 1) and set(np.unique(images)) == {0.0, 1.0}
    assert set(labels) == set(range(10))
