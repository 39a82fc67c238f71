"""The whole loss from its parts."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.objective import Elbo, group_weights, training_loss

RECONSTRUCTION = np.float32([10.0, 20.0])
KL = np.float32([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]])
ALPHA = (1.0, 1.0, 2.0)


def loss_of(beta, reconstruction=RECONSTRUCTION, kl=KL):
    elbo = Elbo(tf.convert_to_tensor(reconstruction), tf.convert_to_tensor(kl))
    return training_loss(elbo, tf.constant(beta), ALPHA, tf.constant(7.0), tf.constant(0.1))


def test_during_the_warm_up():
    found = loss_of(0.5)
    weights = group_weights(tf.constant(KL), tf.constant(0.5), ALPHA).numpy()
    assert len(set(weights)) > 1
    np.testing.assert_allclose(found.group_weights, weights)
    np.testing.assert_allclose(found.balanced_kl, KL @ weights, rtol=1e-6)
    assert float(found.loss) == pytest.approx(np.mean(RECONSTRUCTION + KL @ weights) + 0.1 * 7.0)


def test_after_the_warm_up_it_is_the_bound_and_the_regularizers():
    found = loss_of(1.0)
    np.testing.assert_allclose(found.balanced_kl, [7.0, 5.0])
    assert float(found.loss) == pytest.approx(15.0 + 6.0 + 0.7)


def test_gradients():
    reconstruction, kl = tf.constant(RECONSTRUCTION), tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch([reconstruction, kl])
        loss = loss_of(0.5, reconstruction, kl)
    gradients = tape.gradient(loss.loss, [reconstruction, kl])
    np.testing.assert_allclose(gradients[0], [0.5, 0.5])
    np.testing.assert_allclose(gradients[1], np.tile(loss.group_weights / 2.0, (2, 1)), rtol=1e-6)
