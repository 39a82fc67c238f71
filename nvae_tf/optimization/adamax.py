"""The Adamax of the published training runs."""

import keras
from keras import ops


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
        step = ops.cast(self.iterations + 1, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype) / (1.0 - ops.power(self.beta_1, step))
        gradient = ops.cast(gradient, variable.dtype) + self.l2 * variable
        new_momentum = self.beta_1 * momentum + (1.0 - self.beta_1) * gradient
        new_norm = ops.maximum(self.beta_2 * norm, ops.abs(gradient) + self.epsilon)
        self.assign(momentum, new_momentum)
        self.assign(norm, new_norm)
        self.assign_sub(variable, rate * new_momentum / new_norm)

    def get_config(self) -> dict:
        """The settings, for saving."""
        settings = {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon", "l2")}
        return {**super().get_config(), **settings}
