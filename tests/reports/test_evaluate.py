import re

import numpy as np
import pytest

from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.table import interval, rows, table
from nvae_tf.latent_plan import latent_plan
from nvae_tf.reports.evaluate import half_width_95, likelihood_metrics
from tests.tiny_model import tiny_config


def likelihood(count, numbers=(1, 10)):
    random = np.random.default_rng(0)
    values = random.normal(50.0, 5.0, count), random.gamma(1.0, 1.0, (count, 2, 3))
    return Likelihood(*values, tuple(numbers), random.normal(50.0, 5.0, (count, len(numbers))), np.ones(count))


def test_the_interval_holds_the_mean_in_95_of_100_cases():
    random = np.random.default_rng(0)
    samples = random.normal(3.0, 2.0, (2000, 100))
    hits = [abs(sample.mean() - 3.0) < half_width_95(sample) for sample in samples]
    assert np.mean(hits) == pytest.approx(0.945, abs=0.015)
    assert half_width_95(np.array([1.0])) is None


def test_metrics_and_table_of_scales_and_groups():
    plan = latent_plan(tiny_config())
    assert [len(scale.groups) for scale in plan.scales] == [1, 1]
    measured = likelihood(7)
    metrics = likelihood_metrics(measured, plan, num_values=16)
    assert metrics["bits_per_dim"] == pytest.approx(measured.nelbo.mean() / 16 / np.log(2))
    np.testing.assert_allclose(metrics["kl_per_scale_nats"], measured.kl.sum(axis=2).mean(axis=0))
    four_groups = latent_plan(tiny_config(num_groups_per_scale=2))
    of_four = measured._replace(kl=np.ones((7, 4, 3)))
    assert likelihood_metrics(of_four, four_groups, num_values=16)["kl_per_scale_nats"] == [6.0, 6.0]
    bound = measured.importance_weighted[:, 1].mean()
    assert metrics["importance_weighted_nats_by_samples"]["10"] == pytest.approx(bound)
    about = {"num_images": 7, "split": "test", "dataset": "digits", "data": "here", "seed": 0, "checkpoint": "latest"}
    about |= {"step": 3, "weights": "weights as trained", "checkpoint_sha256": 64 * "a"}
    text = table(metrics | about)
    assert f"{interval(measured.nelbo.mean(), half_width_95(measured.nelbo))} nats per image" in text
    for name, value, how in rows(metrics | about):
        assert re.search(f"{re.escape(name)} +{re.escape(value)}", text) and how
    without = table(likelihood_metrics(likelihood(7, ()), plan, 16) | about)
    assert "importance" not in without and "effective" not in without


def test_an_interval_has_two_digits_and_its_value_as_many_places():
    assert interval(32.9000903, 0.6931) == "32.90 ± 0.69" and interval(1234.56, 98.7) == "1,235 ± 99"
    assert interval(0.1854, 0.00390621) == "0.1854 ± 0.0039" and interval(5.25, 1.04) == "5.2 ± 1.0"
    assert interval(35.94871, None) == "35.95" and interval(10_400.4, None) == "10,400"
