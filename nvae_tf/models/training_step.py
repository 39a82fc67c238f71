"""One step of training, `train_step`, and the metrics that it leaves.

A step that the step guard skips leaves the trained state as it was, but for the loss scale of mixed precision and, at
first, the scales of data-dependent layers. `model` is the compiled `NVAE` (nvae.py) that is trained.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy.special import ndtri

from nvae_tf import objective as objectives
from nvae_tf.layers import ForwardPass, Packing
from nvae_tf.layers.cpu_kernels import has_cpu_forms
from nvae_tf.models.latents import PosteriorSource, batch_noise, batch_size_of
from nvae_tf.models.passes import inference_pass, top_down_pass
from nvae_tf.optimization.adamax import NVAEAdamax
from nvae_tf.optimization.joined_weights import MOST_JOINED_VALUES, apply_joined_if
from nvae_tf.replicas import replica_count, replica_index, replica_means


class StepMetrics(NamedTuple):
    """The metrics of a step, of one replica's images, later of all replicas'."""

    loss: tf.Tensor  # what is differentiated: weighted KL terms and regularizers too, scalar
    reconstruction: tf.Tensor  # -log p(x | z) in nats, scalar
    kl_per_group: tf.Tensor  # unweighted, in nats, `[groups]`, top group first
    spectral_norms: tf.Tensor | None  # largest singular value of every convolution `[layers]`; None for a microbatch
    # The norm of all gradients as one vector; on several replicas sqrt(mean over the replicas of norm^2).
    gradient_norm: tf.Tensor | None = None  # set by `metrics_of_all_replicas`

    @property
    def means(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The metrics that are means over images."""
        return self.loss, self.reconstruction, self.kl_per_group


class LossAndGradients(NamedTuple):
    """What one replica computes of a step."""

    metrics: StepMetrics
    gradients: list[tf.Tensor]  # of the loss as the optimizer takes it, see `_scaled_for_optimizer`
    updates: list[tuple[keras.Variable, tf.Tensor]]  # new batch-norm statistics and vectors of power iterations


def train_step(model, images: tf.Tensor, labels: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """Takes one step of a compiled model on a batch, unless the step guard skips it.

    Images are `[batch, height, width, channels]` in [0, 1]; labels are the classes of a conditional model, int32
    `[batch]`. On several replicas each calls this with its own images, and all take one step together. Returns the
    values of `RunningMetrics.training_metrics` by name.
    """
    step = model.optimizer.iterations  # accepted steps; the draws are a function of the model's seed and this number
    initialize_scales_once(model, images)
    compute = loss_and_gradients if model.accumulate_steps == 1 else mean_over_microbatches
    metrics, gradients, updates = compute(model, images, labels, step)

    metrics = metrics_of_all_replicas(model, metrics, gradients)
    accepted = model.step_guard.accepts(metrics.loss, metrics.gradient_norm)
    # A skipped step changes no weight, statistic or running mean: a NaN would stay in a mean for good.
    apply_gradients_if(model, accepted, metrics, gradients)
    for variable, value in updates:
        variable.assign(tf.where(accepted, value, variable))
    batch_size = batch_size_of(images) * replica_count()
    _on_all_replicas_if(accepted, lambda step_metrics: model.running.track(step_metrics, batch_size), metrics)
    model.recent.record(metrics, accepted)
    model.step_guard.observe(metrics.loss, accepted)
    model.running.skipped_steps.update_state(tf.where(accepted, 0.0, 1.0))
    return metric_values(model.running.training_metrics)


def loss_and_gradients(model, images: tf.Tensor, labels: tf.Tensor | None, step: tf.Tensor) -> LossAndGradients:
    """The loss of a batch and its gradients, with draws that depend on the seed, the step and the image's place."""
    noise, labels = draws(model, images, step), kept_labels(model, labels, step)
    forward = training_pass(model, labels)
    with tf.GradientTape() as tape:
        metrics, *_ = loss_terms(model, images, noise, step, forward)
        scaled_loss = _scaled_for_optimizer(model, metrics.loss)
    return LossAndGradients(metrics, _gradients(model, tape, scaled_loss), forward.updates())


def training_pass(model, labels: tf.Tensor | None = None, initializing: bool = False) -> ForwardPass:
    """A training pass for images of these classes; with `model.scan` equal layers are loops of its graph."""
    return ForwardPass(training=True, scanned=_has_loops(model), labels=labels, initializing=initializing)


def draws(model, images: tf.Tensor, step, first=None, seed=None) -> list[tf.Tensor]:
    """Standard-normal draws for each latent group, a function of seed (None: the model's), step and image's place.

    `first` is the first image's number in the batch of all replicas; None: the images are this replica's batch.
    """
    first = replica_index() * batch_size_of(images) if first is None else first
    key = (model.seed if seed is None else seed), tf.cast(step, tf.int32)
    return batch_noise(model.plan.latent_shapes(), batch_size_of(images), key, first)


def kept_labels(model, labels: tf.Tensor | None, step, first=None, seed=None) -> tf.Tensor | None:
    """Labels with -1 in place of those that this step drops (`label_dropout`); each has a draw of its own."""
    if labels is None or not model.label_dropout:
        return labels
    first = replica_index() * batch_size_of(labels) if first is None else first
    # The seed is folded with 1, so that these draws are not the draws of the latents.
    seed = tf.stack([model.seed if seed is None else seed, tf.cast(step, tf.int32)])
    seed = tf.random.experimental.stateless_fold_in(seed, 1, alg="philox")
    (noise,) = batch_noise([(1, 1, 1)], batch_size_of(labels), seed, first)
    is_dropped = noise[:, 0, 0, 0] < ndtri(model.label_dropout)  # a normal draw is below ndtri(p) with probability p
    return tf.where(is_dropped, -1, labels)


def loss_terms(
    model, images: tf.Tensor, noise: Sequence, step: tf.Tensor, forward: ForwardPass, regularize: bool = True
) -> tuple[StepMetrics, objectives.Elbo, tf.Tensor]:
    """The metrics (with the training loss, sections 3.2 and 4 of the paper); the bound; the weighted regularizers.

    `noise` is what `draws` returns; `step`, the number of steps taken, sets the weight of the KL terms; `forward`
    gathers the batch statistics. With `regularize` False the loss has no regularizers of the weights, and there are no
    norms.
    """
    spectral_norms, regularizers, network_images = None, 0.0, images
    if regularize:
        spectral_norms, regularizers = weight_regularizers(model, forward)
        network_images, regularizers = objectives.identity_with_ordered_gradients(images, regularizers)
    features = model.bottom_up.features(network_images, forward)
    sources = list(map(PosteriorSource, features, noise))
    elbo = top_down_pass(model, sources, batch_size_of(images), forward).elbo(images)
    settings = model.objective
    beta = objectives.kl_weight(step, settings)
    weighted_regularizers = objectives.regularization_weight(beta, settings) * regularizers
    loss = objectives.training_loss(elbo, beta, weighted_regularizers, settings, model.plan)
    reconstruction, kl = tf.reduce_mean(elbo.reconstruction), tf.reduce_mean(elbo.kl, axis=0)
    return StepMetrics(loss, reconstruction, kl, spectral_norms), elbo, weighted_regularizers


def weight_regularizers(model, forward: ForwardPass) -> tuple[tf.Tensor, tf.Tensor]:
    """The spectral norm of every convolution `[layers]`, and the sum of both regularizers (section 3.2)."""
    norms = tf.concat(model.spectral_regularizer.norms(forward), axis=0)
    batch_norm_loss = objectives.batch_norm_loss(model.batch_norms) if model.batch_norms else 0.0
    return norms, tf.reduce_sum(norms) + batch_norm_loss


def mean_over_microbatches(model, images: tf.Tensor, labels: tf.Tensor | None, step: tf.Tensor) -> LossAndGradients:
    """As `loss_and_gradients`, the mean over equal microbatches, which take less memory.

    Each microbatch has its own batch statistics, KL balancing and free nats; power vectors advance once.
    """
    count, size = model.accumulate_steps, images.shape[0]
    if size is None or size % count:
        form = "equal parts: give batches of a fixed size (drop_remainder=True) that it divides"
        raise ValueError(f"a batch of {size or 'unknown size'} can't be cut into accumulate_steps = {count} {form}")
    size //= count
    statistics = model.statistics
    # Each microbatch returns tensors of the shapes of these: gradients, new statistics, means of the metrics.
    like = model.trainable_weights, statistics, [tf.zeros([]), tf.zeros([]), tf.zeros([model.plan.num_groups])]

    def microbatch(index: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        some_images = tf.slice(images, [index * size, 0, 0, 0], [size, *images.shape[1:]])
        some_labels = None if labels is None else tf.slice(labels, [index * size], [size])
        first = (replica_index() * count + index) * size
        noise, some_labels = draws(model, some_images, step, first), kept_labels(model, some_labels, step, first)
        forward = training_pass(model, some_labels)
        with tf.GradientTape() as tape:
            metrics, *_ = loss_terms(model, some_images, noise, step, forward, regularize=False)
            scaled_loss = _scaled_for_optimizer(model, metrics.loss) / count
        # The update is linear: the sum of these parts is the update by the mean of the microbatches' statistics.
        new_values = {id(variable): value / count for variable, value in forward.updates()}
        new_statistics = [new_values[id(variable)] for variable in statistics]
        return _gradients(model, tape, scaled_loss), new_statistics, [value / count for value in metrics.means]

    gradients, new_statistics, (loss, *parts) = sum_over_microbatches(microbatch, count, like)
    # Once for all microbatches: the part of the loss that depends on the weights alone.
    forward = training_pass(model)
    with tf.GradientTape() as tape:
        spectral_norms, regularizers = weight_regularizers(model, forward)
        weight = objectives.regularization_weight(objectives.kl_weight(step, model.objective), model.objective)
        weighted_regularizers = regularizers * weight
        scaled_loss = _scaled_for_optimizer(model, weighted_regularizers)
    gradients = list(map(tf.add, _gradients(model, tape, scaled_loss), gradients))
    updates = forward.updates() + list(zip(statistics, new_statistics, strict=True))
    return LossAndGradients(StepMetrics(loss + weighted_regularizers, *parts, spectral_norms), gradients, updates)


def sum_over_microbatches(microbatch: Callable, count: int, like: Sequence[Sequence[tf.Tensor]]) -> Sequence:
    """`sum_i microbatch(i)` for `i < count`, lists of float32 tensors of the shapes of `like`, in the memory of one."""

    def add_next(index: tf.Tensor, sums: Sequence) -> tuple[tf.Tensor, Sequence]:
        return index + 1, tf.nest.map_structure(tf.add, sums, microbatch(index))

    sums = tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape), like)
    if replica_count() == 1:
        return tf.while_loop(lambda index, _: index < count, add_next, (tf.constant(0), sums), parallel_iterations=1)[1]
    for index in range(count):  # replicas can't communicate from within a loop of the graph
        with tf.control_dependencies(tf.nest.flatten(sums)):
            _, sums = add_next(tf.constant(index), sums)
    return sums


def metrics_of_all_replicas(model, metrics: StepMetrics, gradients: list[tf.Tensor]) -> StepMetrics:
    """The metrics of all replicas' images, with the gradient norm."""
    if _joins_small_weights(model):  # one reduction for all small gradients, not a kernel each
        gradients = Packing(gradients, MOST_JOINED_VALUES).pack(gradients)
    squared_norm = 2.0 * tf.reduce_sum(tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients]))
    squared_norm /= tf.square(_scaled_for_optimizer(model, 1.0))  # undoes the loss scale and the division by replicas
    *means, squared_norm = replica_means([*metrics.means, squared_norm])
    return StepMetrics(*means, metrics.spectral_norms, tf.sqrt(squared_norm))


def apply_gradients_if(model, accepted: tf.Tensor, metrics: StepMetrics, gradients: list[tf.Tensor]) -> None:
    """Updates weights and the optimizer's slots with gradients, if the step is accepted.

    In one of three ways: small weights joined (on a GPU, with `model.scan`), a condition for each weight (a graph on
    one CPU, with less memory), or one condition around all of them.
    """
    optimizer, weights = model.optimizer, model.trainable_weights
    is_ours = isinstance(optimizer, NVAEAdamax) and optimizer.is_plain
    if is_ours and _joins_small_weights(model):
        return apply_joined_if(optimizer, accepted, gradients, weights)
    if is_ours and has_cpu_forms() and not (tf.executing_eagerly() or tf.distribute.has_strategy()):
        return optimizer.apply_if(accepted, gradients, weights)
    calls_optimizer = accepted
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # Keras' LossScaleOptimizer is called for an overflow too: it lowers its scale then, and takes no step. Each
        # replica looks at its own gradients alone, so all of them get a NaN. Where the loss itself is not finite, the
        # scale is not at fault.
        overflows = tf.math.is_finite(metrics.loss) & ~tf.math.is_finite(metrics.gradient_norm)
        calls_optimizer = accepted | overflows
        gradients = [tf.where(overflows, float("nan"), gradients[0]), *gradients[1:]]
    _on_all_replicas_if(calls_optimizer, lambda gradients: optimizer.apply(gradients, weights), gradients)


def initialize_scales_once(model, images: tf.Tensor) -> None:
    """Before the first step: sets the scales of data-dependent layers from the first batch."""
    if model.is_data_dependent:  # as few models are
        _on_all_replicas_if(model.data_initialised < 1.0, lambda images: initialize_scales(model, images), images)


def initialize_scales(model, images: tf.Tensor) -> None:
    """Sets the scales of data-dependent layers from this batch."""
    forward = training_pass(model, initializing=True)
    inference_pass(model, images, draws(model, images, 0), forward)
    # A bad image must not decide for good; the moments are of the batch of all replicas.
    updates = forward.updates()
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for _, value in updates])
    for variable, value in updates:
        variable.assign(tf.where(finite, value, variable))
    model.data_initialised.assign(tf.cast(finite, tf.float32))


def _has_loops(model) -> bool:
    return model.scan and replica_count() == 1  # replicas can't communicate from within a loop of the graph


def _joins_small_weights(model) -> bool:
    # Joining makes XLA's program small. On CPUs, which need no such program, it only takes time.
    return _has_loops(model) and not has_cpu_forms()


def _scaled_for_optimizer(model, loss: tf.Tensor | float) -> tf.Tensor:
    # Loss * loss scale / number of replicas: the optimizer adds the replicas' gradients, and divides by the loss scale.
    return model.optimizer.scale_loss(loss / replica_count())


def _gradients(model, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
    # Zeros for weights that the loss does not depend on: `mean_over_microbatches` has a loss of regularizers alone.
    return tape.gradient(loss, [weight.value for weight in model.trainable_weights], unconnected_gradients="zero")


def _on_all_replicas_if(condition: tf.Tensor, function: Callable, *values) -> None:
    """`function(*values)` on every replica if a condition holds, which is the same on all."""

    # Replicas update variables together: under a condition only if all of them enter it as one.
    def together(strategy: tf.distribute.Strategy, condition, *values) -> None:

        def update() -> None:
            strategy.extended.call_for_each_replica(function, args=values)

        tf.cond(strategy.experimental_local_results(condition)[0], update, lambda: None)

    tf.distribute.get_replica_context().merge_call(together, args=(condition, *values))


class _SharedVariables:
    # For Keras' metrics: the values are the same on all replicas, and each can read and save them without the others.
    def add_variable(self, shape, initializer, dtype=None, aggregation=None, name=None):
        return super().add_variable(shape, initializer, dtype, "only_first_replica", name)


class _Mean(_SharedVariables, keras.metrics.Mean):
    def result(self):  # NaN before the first value
        return tf.where(self.count > 0.0, super().result(), float("nan"))


class _Sum(_SharedVariables, keras.metrics.Sum):
    pass


class RunningMetrics:
    """Means since the last reset: loss, reconstruction, KL (nats per image), norm of gradients; the skipped steps."""

    def __init__(self):
        self.evaluation_metrics = [_Mean(name=name) for name in ("loss", "reconstruction", "kl")]
        self.loss, self.gradient_norm = self.evaluation_metrics[0], _Mean(name="gradient_norm")
        self.skipped_steps = _Sum(name="skipped_steps")
        self.training_metrics = [*self.evaluation_metrics, self.gradient_norm, self.skipped_steps]

    def track_bound(self, loss: tf.Tensor, reconstruction: tf.Tensor, kl: tf.Tensor, batch_size) -> None:
        """Takes in the means of a batch of this size, scalars."""
        for metric, value in zip(self.evaluation_metrics, (loss, reconstruction, kl), strict=True):
            metric.update_state(value, sample_weight=tf.cast(batch_size, tf.float32))

    def track(self, metrics: StepMetrics, batch_size) -> None:
        """Takes in an accepted step on a batch of this size."""
        self.track_bound(metrics.loss, metrics.reconstruction, tf.reduce_sum(metrics.kl_per_group), batch_size)
        self.gradient_norm.update_state(metrics.gradient_norm)


def metric_values(metrics: Sequence[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
    """The values of metrics by name."""
    # Several workers' `fit` joins their metrics along an axis, which scalars lack.
    several = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
    return {metric.name: tf.reshape(metric.result(), [1] if several else []) for metric in metrics}


class RecentSteps(NamedTuple):
    """The last steps, oldest first."""

    accepted: np.ndarray  # whether each was taken, `[steps]`
    kl_per_group: np.ndarray  # in nats per image, `[steps, groups]`
    spectral_norms: np.ndarray  # `[steps, layers]`


class RecentMetrics:
    """KL of every group and spectral norm of every layer at the last steps; reading them holds up an accelerator."""

    STEPS = 200

    def __init__(self, num_groups: int, num_layers: int):
        self._num_groups = num_groups
        shared = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self._rows = tf.Variable(tf.zeros([self.STEPS, 1 + num_groups + num_layers]), name="recent_metrics", **shared)
        self._count = tf.Variable(0, dtype=tf.int64, name="recent_steps", **shared)

    def record(self, metrics: StepMetrics, accepted: tf.Tensor) -> None:
        """Records the metrics of a step, in place of the oldest."""
        row = tf.concat([[tf.cast(accepted, tf.float32)], metrics.kl_per_group, metrics.spectral_norms], axis=0)
        place = tf.convert_to_tensor(self._count) % self.STEPS
        self._rows.assign(tf.tensor_scatter_nd_update(self._rows, [[place]], [row]))
        self._count.assign(self._count + 1)

    def forget(self) -> None:
        """Drops all that is recorded."""
        self._count.assign(0)

    def read(self) -> RecentSteps:
        """All that is recorded."""
        count, rows = int(self._count.numpy()), self._rows.numpy()
        in_order = [step % self.STEPS for step in range(max(count - self.STEPS, 0), count)]
        accepted, kl, norms = np.split(rows[in_order], [1, 1 + self._num_groups], axis=1)
        return RecentSteps(accepted[:, 0] > 0.0, kl, norms)
