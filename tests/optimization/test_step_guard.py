import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.optimization import RunawayGuard, StepGuard


def offered(guard, losses, gradient_norm=1.0):
    def offer(loss):
        accepted = guard.accepts(loss, tf.constant(gradient_norm))
        guard.observe(loss, accepted)
        return accepted

    offer_all = tf.function(lambda all: tf.map_fn(offer, all, fn_output_signature=tf.bool, parallel_iterations=1))
    return offer_all(tf.constant(losses, tf.float32)).numpy()


def noisy(level, count, spread=1.0, seed=0):
    return level + spread * np.random.default_rng(seed).standard_normal(count)


@pytest.mark.parametrize("guard", [StepGuard(), RunawayGuard()])
def test_what_is_not_finite_is_skipped(guard):
    assert offered(guard, [5.0, np.nan, np.inf, -np.inf, 6.0]).tolist() == [True, False, False, False, True]
    assert not offered(guard, [5.0], gradient_norm=np.nan).any()


def test_a_training_run_is_let_through():
    # A steep fall, a slow rise while the KL warms up, and a long slow fall.
    falling = 5000 * np.exp(-np.arange(300) / 40) + 100
    rising = np.linspace(100, 180, 1500)
    level = np.concatenate([falling, rising, np.linspace(180, 150, 2000)])
    assert offered(RunawayGuard(), level + noisy(0, len(level), 4.0)).all()


def test_a_runaway_loss_is_skipped_and_moves_nothing():
    guard = RunawayGuard()
    assert offered(guard, noisy(100, 500)).all()
    state = list(map(float, guard.variables[:3]))
    assert not offered(guard, [150.0, 1e4, 1e30]).any()
    assert list(map(float, guard.variables[:3])) == state
    assert float(guard.skipped_in_a_row) == 3
    assert offered(guard, [101.0]).all() and float(guard.skipped_in_a_row) == 0
    # Accepted outliers, just below the limit, hardly raise it.
    before, losses = float(guard.limit), noisy(100, 200, seed=1)
    losses[::10] = before - 1.0
    assert offered(guard, losses).all()
    assert float(guard.limit) < before + 0.5 * (before - 100)


def test_level_and_spread_are_those_of_the_losses_and_where_there_is_no_limit():
    guard = RunawayGuard()
    offered(guard, noisy(-30, 2000, 2.0))
    assert float(guard.level) == pytest.approx(-30, abs=1.0)
    # The mean distance from the mean of a Normal is 0.8 standard deviations.
    assert float(guard.spread) == pytest.approx(1.6, rel=0.25)
    # At first, at tolerance 0, and where losses are very even.
    assert offered(RunawayGuard(settling_steps=50), [1.0] * 49 + [1e6]).all()
    assert offered(RunawayGuard(tolerance=0.0), [1.0] * 300 + [1e6]).all()
    assert offered(RunawayGuard(), [100.0] * 300 + [105.0]).all()
