"""The Adamax of the published training runs, and the exponential moving averages that any Keras optimizer can keep."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import real_number
from nvae_tf.layers import Packing, cpu_kernels, variables_named_alike

# Larger weights are updated one after the other: all at once, their temporaries would take as much as the activations.
_LARGE = 2**16
# Weights of at most so many numbers are joined where the program is to be small: a model has hundreds of them.
SMALL_WEIGHT = 2**19
_POSTPONED = contextvars.ContextVar("later", default=None)


@contextlib.contextmanager
def joined_weights_later() -> Iterator[list[tuple[Callable[[list], None], list]]]:
    """Gives a list to which optimizers in the block add `(assign, tensors)` instead of assigning joined weights.

    The program that XLA compiles returns the tensors; inside, cutting them takes a kernel for each weight.
    """
    token = _POSTPONED.set([])
    try:
        yield _POSTPONED.get()
    finally:
        _POSTPONED.reset(token)


class Slots(NamedTuple):
    """What the optimizer keeps of a weight."""

    momentum: keras.Variable  # m
    norm: keras.Variable  # u - epsilon


@keras.saving.register_keras_serializable("nvae_tf")
class NVAEAdamax(keras.optimizers.Optimizer):
    """Adamax with L2 decay in the gradient and epsilon inside the maximum (Vahdat & Kautz 2020, appendix A).

    With `g = gradient + l2 * p` and step t counted from 1:

        m = beta_1 m + (1 - beta_1) g
        u = max(beta_2 u, |g| + epsilon)
        p = p - learning_rate / (1 - beta_1^t) * m / u

    Keras' own Adamax adds epsilon to u in the denominator and keeps the decay out of the moments. ValueError for a
    learning rate that is not finite or below 0, and for betas outside of [0, 1).
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
        # Arguments that Keras does not hand on from `apply` to `_backend_update_step` and `update_step`. The scalars
        # are made once for all variables: a graph has hundreds, and each would make its own.
        self._beta_1_power: tf.Tensor | None = None
        self._scalars: dict[str, tf.Tensor] = {}
        self._condition: tf.Tensor | None = None  # of the steps in `apply_if`
        self._latest: dict[str, tf.Operation] = {}  # the update of a large weight of each device

    @variables_named_alike()
    def build(self, variables) -> None:
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
        self._beta_1_power = self.beta_1 ** (tf.cast(self.iterations, tf.float32) + 1.0)
        self._scalars = self._made_scalars()
        self._latest = {}
        super().apply(grads, trainable_variables)

    @property
    def can_apply_if(self) -> bool:
        """Whether `apply_if` knows all that this optimizer was asked to do."""
        return not (self.use_ema or self.weight_decay or self.gradient_accumulation_steps)

    def apply_if(self, condition: tf.Tensor, grads, trainable_variables) -> None:
        """`apply` if a condition holds, in a small program; for one replica, and where `can_apply_if`.

        For GPUs it is a choice between values: of a branch XLA's program would have each variable nine times. On CPUs
        one function, called for each weight, has the condition inside.
        """
        self._condition = condition
        try:
            # Nothing may change, not even the step count, before it is known that there is no error.
            with tf.control_dependencies(None if tf.executing_eagerly() else [condition]):
                self.apply(grads, trainable_variables)
        finally:
            self._condition = None
        self.iterations.assign_sub(tf.where(condition, 0, 1))

    def _settings(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon", "l2")}

    def _made_scalars(self) -> dict[str, tf.Tensor]:
        values = self._settings() | {"shift": self.epsilon * (1.0 - self.beta_2) / (self.beta_2 or 1.0)}
        return {name: tf.constant(value, tf.float32) for name, value in values.items()}

    def _backend_update_step(self, grads, trainable_variables, learning_rate) -> None:
        if self._condition is not None:
            update = self._step_on_gpus_if if cpu_kernels.has_gpus() else self._step_on_cpus_if
            update(grads, trainable_variables, learning_rate)
        elif tf.distribute.has_strategy():
            # Calls `update_step` for each variable, with gradients added up over the replicas.
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        else:
            # The same, without the operations that add up.
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                self.update_step(gradient, variable.value, learning_rate)

    def _step_on_cpus_if(self, grads, trainable_variables, learning_rate) -> None:
        boolean, handle = tf.TensorSpec([], tf.bool), tf.TensorSpec([], tf.resource)
        gradient, scalar = tf.TensorSpec(None), tf.TensorSpec([])

        @cpu_kernels.shared_function(boolean, handle, handle, handle, gradient, scalar, scalar)
        def update_if(condition, *arguments) -> tf.Tensor:
            def update() -> None:
                self._step_in_place(*arguments, self._made_scalars())

            tf.cond(condition, update, lambda: None)
            return tf.identity(condition)

        for gradient, variable in zip(grads, trainable_variables, strict=True):
            handles = [each.value.handle for each in (variable, *self.slots_of(variable))]
            arguments = tf.convert_to_tensor(gradient), tf.cast(learning_rate, tf.float32), self._beta_1_power
            self._in_turn(variable.value, update_if, self._condition, *handles, *arguments)

    def _step_on_gpus_if(self, grads, trainable_variables, learning_rate) -> None:
        rate = learning_rate / (1.0 - self._beta_1_power)

        def chosen(*row) -> list[tf.Tensor]:
            gradient, *before = map(tf.convert_to_tensor, row)
            pairs = zip(self._values_after_step(gradient, *before, rate), before, strict=True)
            return [tf.where(self._condition, *pair) for pair in pairs]

        rows = []
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            row = gradient, variable, *self.slots_of(variable)
            if variable.shape.num_elements() <= SMALL_WEIGHT:
                rows.append(row)
                continue
            for each, value in zip(row[1:], chosen(*row), strict=True):
                each.assign(value)
        columns = list(zip(*rows, strict=True))
        packing = Packing([variable for _, variable, *_ in rows], SMALL_WEIGHT)
        packed = [packing.pack(list(map(tf.convert_to_tensor, column))) for column in columns]
        joined = [chosen(*row) for row in zip(*packed, strict=True)]

        def assign(joined: list) -> None:
            for variables, values in zip(columns[1:], zip(*joined, strict=True), strict=True):
                for variable, value in zip(variables, packing.unpack(values), strict=True):
                    variable.assign(value)

        if (later := _POSTPONED.get()) is None:
            assign(joined)
        else:
            later.append((assign, joined))

    def _values_after_step(self, gradient, weight, momentum, norm, rate) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Weight, m and u - epsilon after a step: what `update_step` does, for XLA, which makes it one pass."""
        gradient += self.l2 * weight
        momentum += (1.0 - self.beta_1) * (gradient - momentum)
        norm = tf.maximum(self.beta_2 * norm - self.epsilon * (1.0 - self.beta_2), tf.abs(gradient))
        return weight - rate * (momentum / (norm + self.epsilon)), momentum, norm

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable."""
        handles = [each.handle for each in (variable, *(slot.value for slot in self.slots_of(variable)))]
        rate = tf.cast(learning_rate, tf.float32)
        self._in_turn(variable, self._step_in_place, *handles, gradient, rate, self._beta_1_power, self._scalars)

    def _step_in_place(self, weight, momentum, norm, gradient, rate, power, scalars) -> tf.Operation | None:
        # One step of the variables with these handles. TensorFlow's own kernel has `v = max(beta_2 v, |g|)` and
        # `m / (v + epsilon)`. With v = u - epsilon, lowered first so that u decays, this is the rule of the class, in
        # half of the passes over the memory.
        # In place: a new buffer at each step would lie among those of the activations and fragment the memory.
        lowered = tf.raw_ops.AssignSubVariableOp(resource=norm, value=tf.fill(tf.shape(gradient), scalars["shift"]))
        with tf.control_dependencies(None if tf.executing_eagerly() else [lowered]):
            decayed = gradient + scalars["l2"] * tf.raw_ops.ReadVariableOp(resource=weight, dtype=tf.float32)
        variables = {"var": weight, "m": momentum, "v": norm, "grad": decayed, "lr": rate, "beta1_power": power}
        settings = {"beta1": scalars["beta_1"], "beta2": scalars["beta_2"], "epsilon": scalars["epsilon"]}
        return tf.raw_ops.ResourceApplyAdaMax(**variables, **settings)

    def _in_turn(self, variable: tf.Variable, update: Callable, *arguments: Any) -> None:
        """Calls `update`; in a graph, large variables of a device are updated one after another."""
        latest = self._latest.get(variable.device)
        with tf.control_dependencies([] if latest is None else [latest]):
            done = update(*arguments)
        if not tf.executing_eagerly() and variable.shape.num_elements() > _LARGE:
            self._latest[variable.device] = done

    def get_config(self) -> dict:
        return super().get_config() | self._settings()


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
