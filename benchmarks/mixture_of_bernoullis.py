"""The baseline of the digits demo: a mixture of Bernoullis, fitted by EM to the same bitmaps.

    python -m benchmarks.mixture_of_bernoullis [--components=N] [--json=FILE]

The number of components is chosen by a held-out fifth of the training part, unless it is given; the test part is looked
at once. Prints exact log-likelihoods in nats per image.
"""

import numpy as np
from scipy.special import logsumexp

from benchmarks import results
from benchmarks.digits_quality import digits

COMPONENTS = (20, 40, 80, 120, 160, 240, 320)
_ITERATIONS = 60
_PRIOR_COUNT = 0.5


class MixtureOfBernoullis:
    """`p(x) = sum_k weight_k prod_d Bernoulli(x_d; mean_kd)`, with half a count of each value in every pixel."""

    def __init__(self, components: int, seed: int = 0):
        self.components = components
        self._random = np.random.RandomState(seed)

    def fit(self, images: np.ndarray) -> "MixtureOfBernoullis":
        """EM on 0/1 images `[count, pixels]`, started from images drawn at random."""
        starts = images[self._random.choice(len(images), self.components, replace=False)]
        self.means = 0.25 + 0.5 * starts
        self.log_weights = np.full(self.components, -np.log(self.components), np.float32)
        for _ in range(_ITERATIONS):
            joint = self._log_joint(images)
            responsibilities = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
            counts = responsibilities.sum(axis=0, dtype=np.float64).astype(np.float32)
            self.means = (responsibilities.T @ images + _PRIOR_COUNT) / (counts + 2 * _PRIOR_COUNT)[:, None]
            self.log_weights = np.log(counts + 1.0) - np.log(counts.sum() + self.components)
        return self

    def negative_log_likelihood(self, images: np.ndarray) -> float:
        """Mean over images `[count, pixels]`, in nats."""
        return float(-logsumexp(self._log_joint(images), axis=1).mean())

    def _log_joint(self, images: np.ndarray) -> np.ndarray:
        return images @ np.log(self.means).T + (1 - images) @ np.log1p(-self.means).T + self.log_weights


def bitmaps(split: str) -> np.ndarray:
    """The digits of a part, 0 or 1, `[count, pixels]`."""
    return digits(split)[0].astype(np.float32)


def chosen_components(training: np.ndarray) -> int:
    """The number of components that a held-out fifth of the training part likes best."""
    held_out = np.arange(len(training)) % 5 == 0
    scores = {}
    for components in COMPONENTS:
        mixture = MixtureOfBernoullis(components).fit(training[~held_out])
        scores[components] = mixture.negative_log_likelihood(training[held_out])
        print(f"{components:4d} components: {scores[components]:.3f} nats on the held-out fifth", flush=True)
    return min(scores, key=scores.get)


def main() -> None:
    parser = results.benchmark_parser("mixture_of_bernoullis", __doc__)
    parser.add_argument("--components", type=results.at_least(1), help="how many; without it the best is looked for")
    options = parser.parse_args()
    training = bitmaps("train")
    components = options.components or chosen_components(training)
    nats = MixtureOfBernoullis(components).fit(training).negative_log_likelihood(bitmaps("test"))
    print(f"mixture of {components} Bernoullis: {nats:.3f} nats on the test images")
    results.write_json({"components": components, "test_nats": nats}, options.json)


if __name__ == "__main__":
    main()
