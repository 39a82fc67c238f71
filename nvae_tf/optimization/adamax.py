"""The Adamax of the published training runs."""

import functools

import keras
import tensorflow as tf


class NVAEAdamax(keras.optimizers.Optimizer):
    """Adamax with L2 decay in the gradient and epsilon inside the maximum (Vahdat & Kautz 2020, appendix A).

    With `g = gradient + l2 * p` and step t counted from 1:

        m = beta_1 m + (1 - beta_1) g
        u = max(beta_2 u, |g| + epsilon)
        p = p - learning_rate / (1 - beta_1^t) * m / u

    Keras' own Adamax adds epsilon to u in the denominator and keeps the decay out of the moments.
    """

    def __init__(
        self,
        learning_rate=1e-2,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-3,
        l2: float = 3e-4,
        name: str = "nvae_adamax",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.l2 = l2
        # Traced once for all variables: a training graph has hundreds.
        signature = [tf.TensorSpec(None)] * 4 + [tf.TensorSpec(()), tf.TensorSpec((), tf.int64)]
        self._latest: list = []
        self._traced = functools.partial(
            tf.function(self._updates, input_signature=signature, autograph=False)
        )

    def build(self, variables) -> None:
        """Makes the two slots of every variable."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"])

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable."""
        index = self._get_variable_index(variable)
        momentum, norm = self._momentums[index], self._norms[index]
        with tf.control_dependencies(self._previous_updates()):
            tensors = [tf.identity(each) for each in (gradient, variable, momentum, norm)]
            change, new_momentum, new_norm = self._traced(
                *tensors, tf.cast(learning_rate, tf.float32), tf.cast(self.iterations.value, tf.int64)
            )
        updates = [
            momentum.value.assign(new_momentum, read_value=False),
            norm.value.assign(new_norm, read_value=False),
            variable.assign_sub(change, read_value=False),
        ]
        self._latest = [] if tf.executing_eagerly() else updates

    def _previous_updates(self) -> list[tf.Operation]:
        """What the next variable waits for in a graph: all at once, their temporaries would need a gigabyte."""
        graph = tf.compat.v1.get_default_graph()
        return [update for update in self._latest if update.graph is graph]

    def get_config(self) -> dict:
        """The settings, for saving."""
        settings = {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon", "l2")}
        return {**super().get_config(), **settings}

    def _updates(self, gradient, value, momentum, norm, learning_rate, iterations) -> tuple[tf.Tensor, ...]:
        rate = learning_rate / (1.0 - self.beta_1 ** tf.cast(iterations + 1, tf.float32))
        gradient = gradient + self.l2 * value
        momentum = self.beta_1 * momentum + (1.0 - self.beta_1) * gradient
        norm = tf.maximum(self.beta_2 * norm, tf.abs(gradient) + self.epsilon)
        return rate * momentum / norm, momentum, norm
