"""The Adamax of the published training runs."""

import keras
import tensorflow as tf

# Weights from this many numbers on are updated one variable after the other: all at once, their temporaries would need
# as much memory as the activations.
_LARGE = 2**16


@keras.saving.register_keras_serializable("nvae_tf")
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
        self._latest: list[tf.Operation] = []
        self._bias_correction: tf.Tensor | None = None
        # One trace for all variables, of whatever shape, and one call in the graph for each.
        tensor, scalar = tf.TensorSpec(None), tf.TensorSpec([])
        self._traced_step = tf.function(
            self._step,
            input_signature=[tensor, tensor, tensor, tensor, scalar, scalar],
            autograph=False,
            experimental_attributes={"_noinline": True},
        )

    def build(self, variables) -> None:
        """Makes the two slots of every variable."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"])

    def apply(self, grads, trainable_variables=None) -> None:
        """One step of all variables; see `keras.optimizers.Optimizer.apply`."""
        # Once for all variables: a training graph has hundreds, and each would make its own.
        self._bias_correction = 1.0 - self.beta_1 ** tf.cast(self.iterations.value + 1, tf.float32)
        self._latest = []
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable."""
        index = self._get_variable_index(variable)
        momentum, norm = self._momentums[index].value, self._norms[index].value
        with tf.control_dependencies(self._latest):
            change, new_momentum, new_norm = self._traced_step(
                gradient, variable, momentum, norm, tf.cast(learning_rate, tf.float32), self._bias_correction
            )
        updates = [
            momentum.assign(new_momentum, read_value=False),
            norm.assign(new_norm, read_value=False),
            variable.assign_sub(change, read_value=False),
        ]
        if not tf.executing_eagerly() and variable.shape.num_elements() > _LARGE:
            self._latest = updates

    def _step(
        self, gradient, variable, momentum, norm, learning_rate, bias_correction
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What is taken from the variable, and its new slots."""
        gradient = gradient + self.l2 * variable
        momentum = self.beta_1 * momentum + (1.0 - self.beta_1) * gradient
        norm = tf.maximum(self.beta_2 * norm, tf.abs(gradient) + self.epsilon)
        return learning_rate / bias_correction * momentum / norm, momentum, norm

    def get_config(self) -> dict:
        """The settings, for saving."""
        settings = {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon", "l2")}
        return {**super().get_config(), **settings}
