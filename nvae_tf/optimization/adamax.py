"""The Adamax of the published training runs, in place by TensorFlow's kernel."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from nvae_tf.config import real_number
from nvae_tf.layers import cpu_kernels, variables_named_alike

_SETTINGS = ("beta_1", "beta_2", "epsilon", "l2")
# Weights of more values than this are updated in sequence on each device: in parallel, their temporaries would take as
# much memory as the activations.
_MOST_VALUES_IN_PARALLEL = 2**16


@keras.saving.register_keras_serializable("nvae_tf")
class NVAEAdamax(keras.optimizers.Optimizer):
    """Adamax with L2 decay in the gradient and epsilon inside the maximum (Vahdat & Kautz 2020, appendix A).

    With `g = gradient + l2 * p` and step t counted from 1:

        m = beta_1 m + (1 - beta_1) g
        u = max(beta_2 u, |g| + epsilon)
        p = p - learning_rate / (1 - beta_1^t) * m / u

    Keras' own Adamax adds epsilon to u in the denominator and keeps the decay out of the moments. The slots of a weight
    are `momentum` (m) and `norm` (u - epsilon, as `_make_update` explains). Keras calls `apply`. The training step of
    this package (models/training_step.py) also has `apply_if` and, for XLA on a GPU, `apply_joined_if` of
    joined_weights.py. ValueError for a learning rate that is not finite or below 0, and for betas outside of [0, 1).
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
        # Set by `apply` for `update_step`, which Keras calls, once for each weight.
        self._update_weight: Callable | None = None

    @variables_named_alike()
    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        initializers = ["zeros", keras.initializers.Constant(-self.epsilon)]  # m and u begin as 0
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"], initializers)

    def get_config(self) -> dict:
        return super().get_config() | {name: getattr(self, name) for name in _SETTINGS}

    @property
    def is_plain(self) -> bool:
        """Whether a step takes the gradients as they are, and changes weights, slots and the step count alone."""
        others = "use_ema", "weight_decay", "gradient_accumulation_steps", "loss_scale_factor"
        return not any(getattr(self, name) for name in (*others, "clipnorm", "clipvalue", "global_clipnorm"))

    def slots_of(self, variable: keras.Variable) -> tuple[keras.Variable, keras.Variable]:
        """The slots `momentum` and `norm` of a trained variable; `build` must have made them."""
        index = self._get_variable_index(variable)
        return self._momentums[index], self._norms[index]

    def beta_1_power(self) -> tf.Tensor:
        """`beta_1^t` of the next step t."""
        return self.beta_1 ** (tf.cast(self.iterations, tf.float32) + 1.0)

    def _make_update(self, beta_1_power: tf.Tensor) -> Callable[..., tf.Operation | None]:
        """A function `update(weight, momentum, norm, gradient, rate)`; the first three are resource handles.

        TensorFlow's kernel has the rule `v = max(beta_2 v, |g|)` and `m / (v + epsilon)`. The slot `norm` holds
        v = u - epsilon. If `epsilon (1 - beta_2) / beta_2` is first subtracted from v, that is this class's rule:

            max(beta_2 (v - epsilon (1 - beta_2) / beta_2), |g|) = max(beta_2 u, |g| + epsilon) - epsilon

        The kernel works in place: new buffers would lie among the activations and fragment the memory, and plain
        operations take twice as many passes over it.
        """
        # Constants are made once, not once for each weight.
        beta_1, beta_2, epsilon, l2 = (tf.constant(getattr(self, name), tf.float32) for name in _SETTINGS)
        # With beta_2 = 0 the old v plays no part.
        lowering = tf.constant(self.epsilon * (1.0 - self.beta_2) / (self.beta_2 or 1.0), tf.float32)

        def update(weight, momentum, norm, gradient, rate) -> tf.Operation | None:
            lowered = tf.raw_ops.AssignSubVariableOp(resource=norm, value=tf.fill(tf.shape(gradient), lowering))
            # The kernel takes this gradient, and so runs after the lowering.
            with tf.control_dependencies([lowered]):
                gradient += l2 * tf.raw_ops.ReadVariableOp(resource=weight, dtype=tf.float32)
            variables = {"var": weight, "m": momentum, "v": norm}
            settings = {"beta1": beta_1, "beta2": beta_2, "epsilon": epsilon, "beta1_power": beta_1_power, "lr": rate}
            return tf.raw_ops.ResourceApplyAdaMax(**variables, grad=gradient, **settings)

        return update

    def _weight_updater(self, update: Callable) -> Callable:
        """A function that updates one weight in a step, by `update` as `_make_update` makes it.

        The updates of a device's large weights wait for each other.
        """
        latest: dict[str, list] = {}  # by device, the latest update of a large weight

        def update_weight(variable: tf.Variable, gradient, learning_rate) -> None:
            handles = [variable.handle, *(slot.value.handle for slot in self.slots_of(variable))]
            with tf.control_dependencies(latest.get(variable.device, [])):
                updated = update(*handles, gradient, tf.cast(learning_rate, tf.float32))
            if variable.shape.num_elements() > _MOST_VALUES_IN_PARALLEL:
                latest[variable.device] = [updated]

        return update_weight

    def apply(self, grads, trainable_variables=None) -> None:
        """One step of all variables; see `keras.optimizers.Optimizer.apply`, which calls `update_step` for each."""
        self._update_weight = self._weight_updater(self._make_update(self.beta_1_power()))
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable, for Keras."""
        self._update_weight(variable, gradient, learning_rate)

    def apply_if(self, condition: tf.Tensor, grads, trainable_variables) -> None:
        """`apply` if a condition holds, for one replica and where `is_plain`.

        The update of each weight is a branch of its own: one around all updates would keep all gradients until its end.
        """
        self.build(list(trainable_variables))  # unless it is built
        handle, any_shape, scalar = tf.TensorSpec([], tf.resource), tf.TensorSpec(None), tf.TensorSpec([])
        # Nothing may change before the condition is known.
        with tf.control_dependencies([condition]):
            power = self.beta_1_power()

            @cpu_kernels.shared_function(handle, handle, handle, any_shape, scalar)  # once in the graph for all weights
            def update_if(weight, momentum, norm, gradient, rate) -> tf.Tensor:
                def update() -> None:
                    self._make_update(power)(weight, momentum, norm, gradient, rate)

                tf.cond(condition, update, lambda: None)
                return tf.identity(condition)  # what the next large weight waits for

            update_weight, rate = self._weight_updater(update_if), tf.convert_to_tensor(self.learning_rate)
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                update_weight(variable.value, gradient, rate)
        self.iterations.assign_add(tf.where(condition, 1, 0))
