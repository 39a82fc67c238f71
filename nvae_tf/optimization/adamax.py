"""The Adamax of the published training runs, and the averages of weights that any Keras optimizer can keep."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.config import real_number
from nvae_tf.layers import cpu_kernels, variables_named_alike

# Larger weights are updated one after the other: all at once, their temporaries would take as much as the activations.
_LARGE = 2**16


@keras.saving.register_keras_serializable("nvae_tf")
class NVAEAdamax(keras.optimizers.Optimizer):
    """Adamax with L2 decay in the gradient and epsilon inside the maximum (Vahdat & Kautz 2020, appendix A).

    With `g = gradient + l2 * p` and step t counted from 1:

        m = beta_1 m + (1 - beta_1) g
        u = max(beta_2 u, |g| + epsilon)
        p = p - learning_rate / (1 - beta_1^t) * m / u

    Keras' own Adamax adds epsilon to u in the denominator and keeps the decay out of the moments. The slot `norm` holds
    v = u - epsilon, for which TensorFlow's kernel has the rule `v = max(beta_2 v, |g|)` and `m / (v + epsilon)`; v is
    lowered before, so that both are the same. ValueError for a learning rate that is not finite or below 0, and for
    betas outside of [0, 1).
    """

    def __init__(
        self, learning_rate=1e-2, beta_1=0.9, beta_2=0.999, epsilon=1e-3, l2=3e-4, name="nvae_adamax", **kwargs
    ):
        if not callable(learning_rate):  # as a schedule is
            learning_rate = real_number("learning_rate", learning_rate, "must be at least 0 and finite", 0.0)
        limits = "must be at least 0 and below 1", 0.0, math.nextafter(1.0, 0.0)
        beta_1, beta_2 = real_number("beta_1", beta_1, *limits), real_number("beta_2", beta_2, *limits)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1, self.beta_2, self.epsilon, self.l2 = beta_1, beta_2, epsilon, l2
        # `apply` and `apply_if` choose it for `update_step`, which Keras calls in between for each weight:
        # f(weight, momentum, norm, gradient, rate).
        self._update_of_weight: Callable[..., tf.Operation | None] | None = None
        self._latest_update: dict[str, list] = {}  # of a large weight, for each device

    @variables_named_alike()
    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        initializers = ["zeros", keras.initializers.Constant(-self.epsilon)]  # u begins as 0
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"], initializers)

    def slots_of(self, variable: keras.Variable) -> tuple[keras.Variable, keras.Variable]:
        """The slots `momentum` (m) and `norm` (v) of a trained variable; `build` must have made them."""
        index = self._get_variable_index(variable)
        return self._momentums[index], self._norms[index]

    def beta_1_power(self) -> tf.Tensor:
        """`beta_1^t` of the next step t."""
        return self.beta_1 ** (tf.cast(self.iterations, tf.float32) + 1.0)

    def apply(self, grads, trainable_variables=None) -> None:
        """One step of all variables; see `keras.optimizers.Optimizer.apply`."""
        power = self.beta_1_power()
        # Constants made once, not once for each weight.
        scalars = {name: tf.constant(value, tf.float32) for name, value in self._scalars().items()}
        self._apply_with(functools.partial(self._step_in_place, scalars, power), grads, trainable_variables)

    def _apply_with(self, update_of_weight: Callable, grads, trainable_variables) -> None:
        self._update_of_weight, self._latest_update = update_of_weight, {}
        super().apply(grads, trainable_variables)

    @property
    def is_plain(self) -> bool:
        """Whether a step takes the gradients as they are, and changes weights, slots and the step count alone."""
        others = "use_ema", "weight_decay", "gradient_accumulation_steps", "loss_scale_factor"
        return not any(getattr(self, name) for name in (*others, "clipnorm", "clipvalue", "global_clipnorm"))

    def apply_if(self, condition: tf.Tensor, grads, trainable_variables) -> None:
        """`apply` if a condition holds, for one replica and where `is_plain`: the update of each weight asks for it.

        A branch around all updates would keep all gradients until its end.
        """
        # Nothing may change, not even the step count, before the condition is known.
        with tf.control_dependencies([condition]):
            step = functools.partial(self._make_conditional_step(), condition, self.beta_1_power())
            self._apply_with(step, grads, trainable_variables)
        self.iterations.assign_sub(tf.where(condition, 0, 1))  # `apply` has counted the step in any case

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable; large ones of a device wait for each other."""
        # Keras gives the variable of TensorFlow; the slots are Keras' variables around theirs.
        handles = [variable.handle, *(slot.value.handle for slot in self.slots_of(variable))]
        with tf.control_dependencies(self._latest_update.get(variable.device, [])):
            done = self._update_of_weight(*handles, gradient, tf.cast(learning_rate, tf.float32))
        if variable.shape.num_elements() > _LARGE:
            self._latest_update[variable.device] = [done]

    def _step_in_place(self, scalars, power, weight, momentum, norm, gradient, rate) -> tf.Operation | None:
        """One step of the variables with these handles, by TensorFlow's kernel.

        In place, because new buffers would lie among the activations and fragment the memory; in half of the passes
        over the memory that plain operations take.
        """
        # v' = max(beta_2 v - epsilon (1 - beta_2), |g|) = max(beta_2 (v - lowering), |g|)
        lowering = tf.fill(tf.shape(gradient), scalars["lowering"])
        lowered = tf.raw_ops.AssignSubVariableOp(resource=norm, value=lowering)
        # The kernel takes this gradient, and so runs after the lowering.
        with tf.control_dependencies([lowered]):
            gradient += scalars["l2"] * tf.raw_ops.ReadVariableOp(resource=weight, dtype=tf.float32)
        variables = {"var": weight, "m": momentum, "v": norm, "grad": gradient, "lr": rate, "beta1_power": power}
        settings = {"beta1": scalars["beta_1"], "beta2": scalars["beta_2"], "epsilon": scalars["epsilon"]}
        return tf.raw_ops.ResourceApplyAdaMax(**variables, **settings)

    def _make_conditional_step(self) -> Callable[..., tf.Tensor]:
        """`_step_in_place` behind a condition, as a function that the graph contains once for all weights."""
        boolean, handle = tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.resource)
        gradient, scalar = tf.TensorSpec(None), tf.TensorSpec([])

        @cpu_kernels.shared_function(boolean, scalar, handle, handle, handle, gradient, scalar)
        def step_if(condition, power, weight, momentum, norm, gradient, rate) -> tf.Tensor:
            def step() -> None:
                self._step_in_place(self._scalars(), power, weight, momentum, norm, gradient, rate)

            tf.cond(condition, step, lambda: None)
            return tf.identity(condition)  # for `update_step`, which makes the next large weight wait for it

        return step_if

    def _scalars(self) -> dict[str, float]:
        # With beta_2 = 0 the old v plays no part.
        return self._settings() | {"lowering": self.epsilon * (1.0 - self.beta_2) / (self.beta_2 or 1.0)}

    def get_config(self) -> dict:
        return super().get_config() | self._settings()

    def _settings(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon", "l2")}


# The exponential moving averages (EMA) of the weights, which any Keras optimizer can keep (`use_ema=True`).


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside Keras' `LossScaleOptimizer`, else the given one itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def average_of_weights(model: keras.Model) -> dict[int, keras.Variable]:
    """The exponential moving average of every trained weight by its `id`; empty if the optimizer keeps none."""
    return {id(weight): average for weight, average in _weights_and_averages(model)}


def start_averages(model: keras.Model) -> None:
    """Sets the averages to the weights before the first step. Keras does so at that step, but it may be skipped."""
    for weight, average in _weights_and_averages(model):
        if int(model.optimizer.iterations.numpy()) == 0:
            average.assign(weight)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside the `with` block the model has the averages in place of its weights, if there are any."""
    start_averages(model)
    pairs = _weights_and_averages(model)
    kept = [weight.numpy() for weight, _ in pairs]
    try:
        for weight, average in pairs:
            weight.assign(average)
        yield
    finally:
        for (weight, _), value in zip(pairs, kept, strict=True):
            weight.assign(value)


def _weights_and_averages(model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    # A model that was never compiled has no such attribute.
    optimizer = inner_optimizer(getattr(model, "optimizer", None))
    if not getattr(optimizer, "use_ema", False) or not optimizer.built:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))
