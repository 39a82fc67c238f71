import re
from types import SimpleNamespace

import numpy as np
import pytest

from nvae_tf.data.pipeline import ALL, Shard
from nvae_tf.evaluation import task as task_module
from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.table import interval, rows, table
from nvae_tf.evaluation.task import KeptBatches, share_work
from nvae_tf.latent_plan import latent_plan
from nvae_tf.progress import StatusLine
from nvae_tf.reports.evaluate import half_width_95, likelihood_metrics
from tests.tiny_model import tiny_config


def likelihood(count, numbers=(1, 10)):
    random = np.random.default_rng(0)
    values = random.normal(50.0, 5.0, count), random.gamma(1.0, 1.0, (count, 2, 3))
    return Likelihood(*values, tuple(numbers), random.normal(50.0, 5.0, (count, len(numbers))), np.ones(count))


def test_batches_are_kept_in_any_order(tmp_path):
    folder = tmp_path / "unfinished"
    kept = KeptBatches(folder, 3)
    assert kept.begin(ALL) and folder.is_dir()
    for number in (2, 0):
        assert kept.write(number, {"values": np.arange(number, 4.0)})
    assert kept.missing(ALL) == [1]
    kept.write(1, {"values": np.arange(1.0, 4.0)})
    for number, arrays in enumerate(KeptBatches(folder, 3).read()):
        np.testing.assert_array_equal(arrays["values"], np.arange(number, 4.0))
    kept.remove()
    assert not list(tmp_path.iterdir())
    # Another process has combined all: what comes too late is not needed.
    assert not kept.write(1, {"values": np.zeros(3)}) and not folder.exists()


@pytest.mark.parametrize(("count", "workers"), [(1, 2), (5, 1), (5, 4), (6, 7)])
def test_each_worker_begins_elsewhere_and_would_do_all(tmp_path, count, workers):
    kept = KeptBatches(tmp_path, count)
    orders = [kept.missing(Shard(index, workers)) for index in range(workers)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if workers <= count:
        assert len({order[0] for order in orders}) == workers


def test_a_damaged_batch_is_named_and_computed_again(tmp_path):
    kept = KeptBatches(tmp_path, 2)
    for number in range(2):
        kept.write(number, {"values": np.arange(50.0)})
    file = tmp_path / "batch-000001.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="batch-000001.npz: was damaged and is removed .*; the same command"):
        list(kept.read())
    assert kept.missing(ALL) == [1]
    (tmp_path / "batch-000000.npz").write_bytes(b"damaged")
    assert kept.missing(ALL) == [0, 1] and not kept.file(0).exists()


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
    for words in ("KL of scale 2x2", "KL of group 0 (2x2)", "importance-weighted, 10 samples", "samples of 10"):
        assert words in text
    for name, value, how in rows(metrics | about):
        assert re.search(f"{re.escape(name)} +{re.escape(value)}", text) and how
    without = table(likelihood_metrics(likelihood(7, ()), plan, 16) | about)
    assert "importance" not in without and "effective" not in without


def test_the_likelihood_ratio_of_an_earlier_file_is_still_shown():
    measured = {"num_images": 3, "auroc": {"kl": 0.5, "llr": 0.75}, "flagged": {}}
    outliers = {"calibrated": False, "sets": {"noise": measured}, "llr_groups": 1, "llr_samples": 2}
    assert "0.500 sum of KLs, 0.750 LLR" in table({"outliers": outliers})


def test_an_interval_has_two_digits_and_its_value_as_many_places():
    assert interval(32.9000903, 0.6931) == "32.90 ± 0.69" and interval(1234.56, 98.7) == "1,235 ± 99"
    assert interval(0.1854, 0.00390621) == "0.1854 ± 0.0039" and interval(5.25, 1.04) == "5.2 ± 1.0"
    assert interval(35.94871, None) == "35.95" and interval(10_400.4, None) == "10,400"


@pytest.mark.parametrize("begins", [True, False])
def test_a_worker_that_is_not_the_chief_does_its_share_and_does_not_combine(begins, tmp_path, monkeypatch):
    monkeypatch.setattr(task_module, "_SECONDS_FOR_CHIEF", 0.0)
    lines = []
    status = StatusLine()
    status.keep = lines.append
    task = SimpleNamespace(shard=Shard(1, 2), status=status)
    if begins:
        (tmp_path / "kept").mkdir()
    kept = KeptBatches(tmp_path / "kept", total=5, size=2)

    def compute(given, first, progress):
        return {"values": np.full(2, first)}

    def shared():
        return share_work(task, kept, lambda numbers: numbers, compute, combine=list)

    assert shared() is None
    assert lines[-1].startswith("worker 1: done" if begins else "worker 1: nothing to do")
    assert kept.missing(ALL) == ([] if begins else [0, 1, 2])
    task.shard = Shard(0, 2)
    assert [batch["values"].tolist() for batch in shared()] == [[0, 0], [2, 2], [4, 4]]
