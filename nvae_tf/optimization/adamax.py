"""The Adamax of the published training runs."""

from typing import NamedTuple

import keras
import tensorflow as tf

# Weights from this many numbers on are updated one variable after the other: all at once, their temporaries would need
# as much memory as the activations.
_LARGE = 2**16


class Slots(NamedTuple):
    """What the optimizer keeps of a weight: the momentum m, and u - epsilon."""

    momentum: keras.Variable
    norm: keras.Variable


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
        self._latest: dict[str, tf.Operation] = {}
        self._power: tf.Tensor | None = None

    def build(self, variables) -> None:
        """Makes the two slots of every variable: m, and u - epsilon (see `update_step`)."""
        if self.built:
            return
        super().build(variables)
        initializers = ["zeros", keras.initializers.Constant(-self.epsilon)]
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"], initializers)

    def slots_of(self, variable: keras.Variable) -> Slots:
        """The slots of a trained variable; `build` must have made them."""
        index = self._get_variable_index(variable)
        return Slots(self._momentums[index], self._norms[index])

    def apply(self, grads, trainable_variables=None) -> None:
        """One step of all variables; see `keras.optimizers.Optimizer.apply`."""
        # Once for all variables: a training graph has hundreds, and each would make its own.
        self._power = self.beta_1 ** (tf.cast(self.iterations, tf.float32) + 1.0)
        self._latest = {}
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable.

        TensorFlow's own kernel has `v = max(beta_2 v, |g|)` and `m / (v + epsilon)`. With v = u - epsilon, lowered
        first so that its decay is that of u, this is the rule above, in half of the passes over the memory.
        """
        momentum, norm = (slot.value for slot in self.slots_of(variable))
        latest = self._latest.get(variable.device)
        with tf.control_dependencies([] if latest is None else [latest]):
            decayed = gradient + self.l2 * variable
        norm.assign(norm - self.epsilon * (1.0 - self.beta_2) / self.beta_2, read_value=False)
        update = tf.raw_ops.ResourceApplyAdaMax(
            var=variable.handle,
            m=momentum.handle,
            v=norm.handle,
            beta1_power=self._power,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=decayed,
        )
        if not tf.executing_eagerly() and variable.shape.num_elements() > _LARGE:
            self._latest[variable.device] = update

    def get_config(self) -> dict:
        """The settings, for saving."""
        settings = {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon", "l2")}
        return {**super().get_config(), **settings}
