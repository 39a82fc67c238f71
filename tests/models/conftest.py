"""Small models for the tests of a file: building one takes half a second, tracing a step many more.

Not for the tests of all files: `forgotten_graphs` forgets how gradients of what a file has traced are computed.
"""

import pytest

from nvae_tf.objective import SpectralRegularizer
from tests.tiny_model import PADDED, images_of, shaken, tiny_config, tiny_model


@pytest.fixture(scope="module")
def model():
    """Three groups on two scales, with flows; not to be trained or changed."""
    groups = dict(num_groups_per_scale=2, min_groups_per_scale=1, adaptive_groups=True, num_flows=1)
    return shaken(tiny_model(**PADDED, **groups, seed=0))


@pytest.fixture(scope="session")
def images():
    return images_of(tiny_config(**PADDED))


@pytest.fixture(scope="module")
def few_power_iterations():
    """Two iterations for the spectral norms of the first step, in place of forty: eagerly these take a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpectralRegularizer, "FIRST_ITERATIONS", 2)
        yield
