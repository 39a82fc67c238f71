import itertools

import numpy as np

from examples.digits import fitted_mixture

TRUE_MEANS = np.array([[0.9] * 6 + [0.1] * 6, [0.1] * 6 + [0.9] * 6])


def drawn(count):
    random = np.random.RandomState(0)
    components = random.choice(2, count, p=[0.3, 0.7])
    return (random.rand(count, 12) < TRUE_MEANS[components]).astype(np.float32)


def test_em_finds_the_components():
    images = drawn(4000)
    likelihoods = np.prod(np.where(images[:, None] == 1.0, TRUE_MEANS, 1.0 - TRUE_MEANS), axis=2)
    difference = fitted_mixture(images, 2)(images) + np.log(likelihoods @ [0.3, 0.7])
    assert abs(difference.mean()) < 0.01 and np.abs(difference).max() < 0.5


def test_it_is_a_distribution():
    everything = np.array(list(itertools.product([0.0, 1.0], repeat=12)), np.float32)
    assert abs(np.exp(-fitted_mixture(drawn(100), 3)(everything)).sum() - 1.0) < 1e-3
