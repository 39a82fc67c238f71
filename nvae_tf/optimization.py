"""The optimizer and learning-rate schedule of the published training runs, averages of weights, and skipped steps."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from nvae_tf.config import real_number
from nvae_tf.layers import Packing, cpu_kernels, variables_named_alike

_ADAMAX_SETTINGS = ("beta_1", "beta_2", "epsilon", "l2")
# Larger weights are updated one after the other: all at once, their temporaries would take as much as the activations.
_LARGE = 2**16
SMALL_WEIGHT = 2**19  # weights of at most this number of values are joined by `apply_joined_if`
# Open while XLA compiles the step of `training/strategy.py`.
_POSTPONED = contextvars.ContextVar("postponed", default=None)
_LOSS_RATE = 0.02  # the weight of the newest loss in the running level and spread
_LARGEST_PULL = 3.0  # how far, in spreads, one loss can pull them
_SMALLEST_SPREAD = 0.01  # as a fraction of the level: on very even losses, noise is no explosion


@keras.saving.register_keras_serializable("nvae_tf")
class NVAEAdamax(keras.optimizers.Optimizer):
    """Adamax with L2 decay in the gradient and epsilon inside the maximum (Vahdat & Kautz 2020, appendix A).

    With `g = gradient + l2 * p` and step t counted from 1:

        m = beta_1 m + (1 - beta_1) g
        u = max(beta_2 u, |g| + epsilon)
        p = p - learning_rate / (1 - beta_1^t) * m / u

    Keras' own Adamax adds epsilon to u in the denominator and keeps the decay out of the moments. The slots of a weight
    are `momentum` (m) and `norm` (u - epsilon, as `_make_update` explains). ValueError for a learning rate that is not
    finite or below 0, and for betas outside of [0, 1).
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
        # Set by `apply` and `apply_if`, because Keras calls `update_step` without them: what updates a weight, and the
        # latest update of a large weight on each device.
        self._update: Callable[..., tf.Operation | tf.Tensor] | None = None
        self._latest_update: dict[str, list] = {}

    @variables_named_alike()
    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        initializers = ["zeros", keras.initializers.Constant(-self.epsilon)]  # m and u begin as 0
        self._momentums, self._norms = self.add_optimizer_variables(variables, ["momentum", "norm"], initializers)

    def get_config(self) -> dict:
        return super().get_config() | {name: getattr(self, name) for name in _ADAMAX_SETTINGS}

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
        """A function that updates one weight: `update(weight, momentum, norm, gradient, rate)`, three handles first.

        TensorFlow's kernel has the rule `v = max(beta_2 v, |g|)` and `m / (v + epsilon)` for the slot `norm`. With
        v = u - epsilon that is the rule of this class if v is lowered first:

            max(beta_2 u, |g| + epsilon) - epsilon = max(beta_2 (v - epsilon (1 - beta_2) / beta_2), |g|)

        The kernel works in place: new buffers would lie among the activations and fragment the memory, and plain
        operations take twice as many passes over it.
        """
        # Constants are made once, not once for each weight.
        beta_1, beta_2, epsilon, l2 = (tf.constant(getattr(self, name), tf.float32) for name in _ADAMAX_SETTINGS)
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

    def update_step(self, gradient, variable, learning_rate) -> None:
        """One step of one variable; large ones of a device wait for each other."""
        # `variable` is TensorFlow's; the slots are Keras' variables around theirs.
        handles = [variable.handle, *(slot.value.handle for slot in self.slots_of(variable))]
        with tf.control_dependencies(self._latest_update.get(variable.device, [])):
            update = self._update(*handles, gradient, tf.cast(learning_rate, tf.float32))
        if variable.shape.num_elements() > _LARGE:
            self._latest_update[variable.device] = [update]

    def apply(self, grads, trainable_variables=None) -> None:
        """One step of all variables; see `keras.optimizers.Optimizer.apply`, which calls `update_step` for each."""
        self._update, self._latest_update = self._make_update(self.beta_1_power()), {}
        super().apply(grads, trainable_variables)

    def apply_if(self, condition: tf.Tensor, grads, trainable_variables) -> None:
        """`apply` if a condition holds, for one replica and where `is_plain`: the update of each weight asks for it.

        A branch around all updates would keep all gradients until its end.
        """
        handle, any_shape, scalar = tf.TensorSpec([], tf.resource), tf.TensorSpec(None), tf.TensorSpec([])
        # Nothing may change, not even the step count, before the condition is known.
        with tf.control_dependencies([condition]):
            power = self.beta_1_power()

            @cpu_kernels.shared_function(handle, handle, handle, any_shape, scalar)  # once in the graph for all weights
            def update_if(weight, momentum, norm, gradient, rate) -> tf.Tensor:
                def update() -> None:
                    self._make_update(power)(weight, momentum, norm, gradient, rate)

                tf.cond(condition, update, lambda: None)
                return tf.identity(condition)  # for `update_step`, which makes the next large weight wait for it

            self._update, self._latest_update = update_if, {}
            super().apply(grads, trainable_variables)
        self.iterations.assign_sub(tf.where(condition, 0, 1))  # Keras has counted the step in any case


@contextlib.contextmanager
def postponed_assignments() -> Iterator[list[tuple[Callable[[list], None], list]]]:
    """Gives a list; a step in the block adds `(assign, tensors)` to it instead of assigning small weights.

    The program that XLA compiles returns the tensors, and `assign(tensors)` runs outside of it: inside, cutting them
    takes a kernel for each weight.
    """
    token = _POSTPONED.set([])
    try:
        yield _POSTPONED.get()
    finally:
        _POSTPONED.reset(token)


def apply_joined_if(
    optimizer: NVAEAdamax, condition: tf.Tensor, gradients: Sequence[tf.Tensor], weights: Sequence[keras.Variable]
) -> None:
    """`optimizer.apply(gradients, weights)` if a condition holds, where `optimizer.is_plain`, for XLA on one GPU.

    XLA compiles kernels for each tensor that a program updates, and a model has hundreds of weights. Here the small
    ones are joined into few tensors, which take the step, and are cut again outside of the program. The condition
    chooses between values: a branch would have XLA's program copy every variable several times.
    """
    optimizer.build(list(weights))  # unless it is built
    corrected_rate = optimizer.learning_rate / (1.0 - optimizer.beta_1_power())

    def values_after(gradient, weight, momentum, norm) -> list[tf.Tensor]:
        """The rule of `NVAEAdamax`, where the slot `norm` is u - epsilon, in operations that XLA makes one."""
        gradient += optimizer.l2 * weight
        new_momentum = momentum + (1.0 - optimizer.beta_1) * (gradient - momentum)
        new_norm = tf.maximum(optimizer.beta_2 * norm - optimizer.epsilon * (1.0 - optimizer.beta_2), tf.abs(gradient))
        new_weight = weight - corrected_rate * (new_momentum / (new_norm + optimizer.epsilon))
        pairs = (new_weight, weight), (new_momentum, momentum), (new_norm, norm)
        return [tf.where(condition, *pair) for pair in pairs]

    small = []  # rows of a gradient, its weight, momentum and norm
    for gradient, weight in zip(gradients, weights, strict=True):
        variables = weight, *optimizer.slots_of(weight)
        if weight.shape.num_elements() <= SMALL_WEIGHT:
            small.append((gradient, *variables))
            continue
        values = values_after(gradient, *map(tf.convert_to_tensor, variables))
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    if small:
        small_gradients, *columns = zip(*small, strict=True)  # columns of weights, momentums and norms
        _apply_to_small(values_after, small_gradients, columns)
    optimizer.iterations.assign_add(tf.where(condition, 1, 0))


def _apply_to_small(values_after: Callable[..., list[tf.Tensor]], gradients: Sequence, columns: list[tuple]) -> None:
    """Assigns the values after a step to small weights and to their two slots, the `columns`; or postpones that."""
    packing = Packing(columns[0], SMALL_WEIGHT)
    packed = [packing.pack(list(map(tf.convert_to_tensor, column))) for column in (gradients, *columns)]
    # Of each joined tensor the new weights, momentums and norms.
    joined = [values_after(*tensors) for tensors in zip(*packed, strict=True)]

    def assign(joined: list[list[tf.Tensor]]) -> None:
        for column, values in zip(columns, zip(*joined, strict=True), strict=True):
            for variable, value in zip(column, packing.unpack(values), strict=True):
                variable.assign(value)

    if (postponed := _POSTPONED.get()) is None:
        assign(joined)
    else:
        postponed.append((assign, joined))


@keras.saving.register_keras_serializable("nvae_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 over the warm-up, one epoch at its last value, then a cosine that moves once an epoch.

    With W warm-up steps, step `i < W` has `learning_rate * i / W`. The first epoch after the warm-up keeps
    `start = learning_rate * (W - 1) / W`; the t-th epoch after it has
    `minimum + (start - minimum) * (1 + cos(pi t / T)) / 2` with `T = epochs - warmup_epochs - 1`
    (Vahdat & Kautz 2020, appendix A, as the published runs did it).
    """

    def __init__(self, learning_rate: float, minimum: float, warmup_steps: int, steps_per_epoch: int, total_steps: int):
        self.learning_rate, self.minimum, self.warmup_steps = learning_rate, minimum, warmup_steps
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps

    def __call__(self, step):
        """The learning rate at a step counted from 0."""
        step = ops.cast(step, "float32")
        warmup = max(self.warmup_steps, 1)
        start = self.learning_rate * (warmup - 1) / warmup if self.warmup_steps else self.learning_rate
        epochs = max(math.ceil((self.total_steps - self.warmup_steps) / self.steps_per_epoch) - 1, 1)
        epoch = ops.clip(ops.floor((step - self.warmup_steps) / self.steps_per_epoch), 0.0, epochs)
        cosine = self.minimum + (start - self.minimum) * 0.5 * (1.0 + ops.cos(math.pi * epoch / epochs))
        return ops.where(step < self.warmup_steps, self.learning_rate * step / warmup, cosine)

    def get_config(self) -> dict:
        return dict(vars(self))


@keras.saving.register_keras_serializable("nvae_tf")
class LoweredRate(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times a `factor` that is lowered at each of the `rollbacks` of training to a checkpoint."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, factor: float = 1.0):
        self.schedule = schedule
        self.factor = tf.Variable(factor, trainable=False, dtype=tf.float32, name="learning_rate_factor")
        self.rollbacks = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="rollbacks")
        self.variables = [self.factor, self.rollbacks]  # what a checkpoint must hold for a run to resume exactly

    def __call__(self, step):
        """The learning rate at a step counted from 0."""
        return self.schedule(step) * self.factor

    def get_config(self) -> dict:
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "factor": float(self.factor.numpy())}

    @classmethod
    def from_config(cls, config: dict) -> "LoweredRate":
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["factor"])


class StepGuard:
    """Skips steps whose loss or gradients are not finite: they change no variable of model or optimizer."""

    def accepts(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        """Whether to take the step, a boolean scalar, by its loss and the norm of all gradients as one vector."""
        return tf.math.is_finite(loss) & tf.math.is_finite(gradient_norm)

    def observe(self, loss: tf.Tensor, accepted: tf.Tensor) -> None:
        """Called after each step with its loss and whether it was taken."""


class RunawayGuard(StepGuard):
    """Also skips steps whose loss is far above those before, and counts how many were skipped in a row.

    After `train.refused_steps` of them `training/loop.py` goes back to a checkpoint.
    The limit is `level + tolerance * spread`: running means of the accepted losses and of their distance from the
    level. For the first `settling_steps` accepted steps, or with a tolerance of 0, there is none.
    """

    def __init__(self, tolerance: float = 10.0, settling_steps: int = 100):
        self.tolerance = tolerance
        self.settling_steps = settling_steps
        self.variables = [  # what a checkpoint must hold for a run to resume exactly
            tf.Variable(0.0, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for name in ("level", "spread", "accepted_steps", "skipped_in_a_row")
        ]
        self.level, self.spread, self.accepted_steps, self.skipped_in_a_row = self.variables

    @property
    def limit(self) -> tf.Tensor:
        """The loss above which a step is skipped; infinity as long as there is no limit."""
        limit = self.level + self.tolerance * self._bounded_spread()
        holds = (self.accepted_steps >= self.settling_steps) & (self.tolerance > 0.0)
        return tf.where(holds, limit, float("inf"))

    def accepts(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        return super().accepts(loss, gradient_norm) & (loss <= self.limit)

    def observe(self, loss: tf.Tensor, accepted: tf.Tensor) -> None:
        """Moves level and spread by an accepted loss; counts the steps skipped in a row."""
        taken = tf.cast(accepted, tf.float32)
        # A plain mean of all losses, until there are enough for the running mean.
        rate = taken * tf.maximum(_LOSS_RATE, 1.0 / (self.accepted_steps + 1.0))
        settled = self.accepted_steps >= self.settling_steps
        reach = tf.where(settled, _LARGEST_PULL * self._bounded_spread(), float("inf"))
        distance = tf.clip_by_value(tf.where(accepted, loss, self.level) - self.level, -reach, reach)
        spread = self.spread + rate * (tf.abs(distance) - self.spread)
        level = self.level + rate * distance
        skipped = (self.skipped_in_a_row + 1.0) * (1.0 - taken)
        for variable, value in zip(self.variables, (level, spread, self.accepted_steps + taken, skipped), strict=True):
            variable.assign(value)

    def _bounded_spread(self) -> tf.Tensor:
        return tf.maximum(self.spread, _SMALLEST_SPREAD * tf.abs(self.level))


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
