"""One step of training: the loss of a batch, its gradients, and an update that happens as a whole or not at all."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import tensorflow as tf
from scipy.special import ndtri

from nvae_tf import objective as objectives
from nvae_tf.config import check
from nvae_tf.layers import ForwardPass, Packing, cpu_kernels
from nvae_tf.models.images import check_batch
from nvae_tf.models.latents import batch_noise, batch_size_of, check_labels
from nvae_tf.models.metrics import StepMetrics
from nvae_tf.optimization import SMALL_WEIGHT, NVAEAdamax
from nvae_tf.replicas import replica_count, replica_index, replica_means

if TYPE_CHECKING:
    from nvae_tf.models.nvae import NVAE


class StepLoss(NamedTuple):
    """The loss of one replica's images, and every layer's spectral norm `[layers]`."""

    elbo: objectives.Elbo
    loss: objectives.TrainingLoss
    spectral_norms: tf.Tensor

    @property
    def means(self) -> list[tf.Tensor]:
        """Loss, reconstruction and KL of every group."""
        return [self.loss.loss, tf.reduce_mean(self.elbo.reconstruction), tf.reduce_mean(self.elbo.kl, axis=0)]


class Step(NamedTuple):
    """A step that may be taken: the gradients of all replicas' mean loss / replicas, and what follows with them."""

    gradients: list[tf.Tensor]
    updates: list[tuple[keras.Variable, tf.Tensor]]
    metrics: StepMetrics
    batch_size: int | tf.Tensor


def batch_of(model: "NVAE", data, may_lack_labels: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Images and, for a conditional model, their labels; other models may get some too, and do not use them."""
    images, labels, *_ = [*data, None] if isinstance(data, (tuple, list)) else (data, None)
    images = check_batch(images, model.config)
    if not model.config.num_classes or (labels is None and may_lack_labels):
        return images, None
    missing = f"this model has model.num_classes = {model.config.num_classes}: give (images, labels), not images alone"
    check(labels is not None, missing)
    return images, check_labels(labels, batch_size_of(images), model.config.num_classes)


def train(model: "NVAE", images: tf.Tensor, labels: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """One step on a batch `[batch, height, width, channels]` in [0, 1], unless the step guard skips it.

    `labels` are the images' classes, int32 `[batch]`, where the model is conditional on them.

    The draws depend on the model's seed and the step alone. Replicas, each with its images, take one step together.
    Returns the metrics' values, see `RunningMetrics`.
    """
    if model.is_data_dependent:
        _on_all_replicas_if(model.data_initialised < 1.0, lambda images: initialize_scales(model, images), images)
    find_step = step_of_batch if model.accumulate_steps == 1 else step_of_microbatches
    take_if_accepted(model, find_step(model, images, labels, model.optimizer.iterations))
    return results(model.running.of_training)


def results(metrics: Sequence[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
    """The values of metrics by their names."""
    # Several workers' `fit` joins their metrics along an axis, which scalars lack.
    several = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
    return {metric.name: tf.reshape(metric.result(), [1] if several else []) for metric in metrics}


def draws(model: "NVAE", images: tf.Tensor, step, shard=None) -> list[tf.Tensor]:
    """The posterior's noise for these images: a replica's, or those of one shard of all replicas' images."""
    batch_size = batch_size_of(images)
    first = (replica_index() if shard is None else shard) * batch_size
    return batch_noise(model.plan.latent_shapes(), batch_size, (model.seed, tf.cast(step, tf.int32)), first)


def kept_labels(model: "NVAE", labels: tf.Tensor | None, step, shard=None) -> tf.Tensor | None:
    """The labels without those that this step drops (-1 in their place), each by a draw of its own, see `draws`."""
    if labels is None or not model.label_dropout:
        return labels
    first = (replica_index() if shard is None else shard) * batch_size_of(labels)
    # Not the draws of the latents.
    seed = tf.random.experimental.stateless_fold_in(tf.stack([model.seed, tf.cast(step, tf.int32)]), 1, alg="philox")
    (noise,) = batch_noise([(1, 1, 1)], batch_size_of(labels), seed, first)
    return tf.where(noise[:, 0, 0, 0] < ndtri(model.label_dropout), -1, labels)


def regularizers_of(model: "NVAE", forward: ForwardPass) -> tuple[tf.Tensor, tf.Tensor]:
    """Every layer's spectral norm, and the sum of both regularizers."""
    norms = tf.concat(model.spectral_regularizer.norms(forward), axis=0)
    total = tf.reduce_sum(norms)
    return norms, total + (objectives.batch_norm_loss(model.batch_norms) if model.batch_norms else 0.0)


def loss_of(model: "NVAE", images, noise, step, forward: ForwardPass, regularizers, inputs=None) -> StepLoss:
    """The loss of images `[batch, height, width, channels]` after so many steps, see `nvae_tf.objective`.

    `noise` are the groups' draws, `regularizers` those of `regularizers_of`, `inputs` what the network sees instead.
    """
    norms, total = regularizers
    elbo = model._inference_pass(images if inputs is None else inputs, noise, forward).elbo(images)
    beta = objectives.kl_weight(step, model.objective)
    weight = objectives.regularization_weight(beta, model.objective)
    scales = objectives.balancing_scales(model.plan)
    of_settings = objectives.final_kl_weights(model.objective, model.plan), model.objective.free_nats
    return StepLoss(elbo, objectives.training_loss(elbo, beta, scales, total, weight, *of_settings), norms)


def step_of_batch(model: "NVAE", images: tf.Tensor, labels: tf.Tensor | None, step: tf.Tensor) -> Step:
    """The step of a batch at once."""
    forward = _forward_pass(model, labels=kept_labels(model, labels, step))
    with tf.GradientTape() as tape:
        found = model._training_loss(images, draws(model, images, step), step, forward)
        scaled_loss = _scaled(model, found.loss.loss)
    gradients = tape.gradient(scaled_loss, model.trainable_weights)
    metrics = _metrics(model, gradients, found.means, found.spectral_norms)
    return Step(gradients, forward.updates, metrics, batch_size_of(images))


def step_of_microbatches(model: "NVAE", images: tf.Tensor, labels: tf.Tensor | None, step: tf.Tensor) -> Step:
    """The mean step of equal microbatches; each has its own batch statistics, KL balancing and free nats."""
    count, size = model.accumulate_steps, images.shape[0]
    check(
        size is not None and size % count == 0,
        f"a batch of {'unknown size' if size is None else size} can't be cut into accumulate_steps = {count} "
        "equal parts: give batches of a fixed size (drop_remainder=True) that it divides",
    )
    size //= count
    forward = ForwardPass(training=True)
    with tf.GradientTape() as tape:
        norms, regularizers = regularizers_of(model, forward)
        beta = objectives.kl_weight(step, model.objective)
        weighted = regularizers * objectives.regularization_weight(beta, model.objective)
        scaled_loss = _scaled(model, weighted)
    gradients = _gradients_or_zeros(model, tape, scaled_loss)
    statistics = [variable for norm in model.batch_norms for variable in norm.statistics]

    def microbatch(index: tf.Tensor) -> list[list[tf.Tensor]]:
        shard = replica_index() * count + index
        some = tf.slice(images, [index * size, 0, 0, 0], [size, *images.shape[1:]])
        of_some = None if labels is None else tf.slice(labels, [index * size], [size])
        forward = _forward_pass(model, labels=kept_labels(model, of_some, step, shard))
        noise = draws(model, some, step, shard)
        with tf.GradientTape() as tape:
            found = loss_of(model, some, noise, step, forward, (norms, 0.0))
            scaled_loss = _scaled(model, found.loss.loss) / count
        gradients = _gradients_or_zeros(model, tape, scaled_loss)
        values = {id(variable): value for variable, value in forward.updates}
        moved = [values[id(variable)] for variable in statistics]
        return [gradients, *([value / count for value in values] for values in (moved, found.means))]

    means = [tf.zeros([]), tf.zeros([]), tf.zeros([model.plan.num_groups])]
    sums = sum_over_microbatches(microbatch, count, [model.trainable_weights, statistics, means])
    gradients = [one + other for one, other in zip(gradients, sums[0], strict=True)]
    forward.updates += zip(statistics, sums[1], strict=True)
    loss, *means = sums[2]
    metrics = _metrics(model, gradients, [loss + weighted, *means], norms)
    return Step(gradients, forward.updates, metrics, size * count)


def sum_over_microbatches(microbatch: Callable, count: int, like: Sequence[Sequence[tf.Tensor]]) -> list:
    """`sum_i microbatch(i)` for `i < count`, with the memory of one; `like` has the same lists of float32 tensors."""

    def add(sums: list, index: tf.Tensor) -> list:
        return tf.nest.map_structure(tf.add, sums, microbatch(index))

    sums = tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape), like)
    if replica_count() == 1:
        loop = (lambda index, _: index < count), (lambda index, sums: (index + 1, add(sums, index)))
        return tf.while_loop(*loop, (tf.constant(0), sums), parallel_iterations=1)[1]
    # Replicas can't communicate from within a loop of the graph.
    for index in range(count):
        with tf.control_dependencies(tf.nest.flatten(sums)):
            sums = add(sums, tf.constant(index))
    return sums


def take_if_accepted(model: "NVAE", step: Step) -> None:
    """Updates weights, slots and running statistics, all or none of them, as the step guard decides."""
    loss, gradient_norm = step.metrics.loss, step.metrics.gradient_norm
    accepted = model.step_guard.accepts(loss, gradient_norm)
    applies, gradients = accepted, step.gradients
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        # It lowers its scale when gradients overflow, but looks at those of its replica alone; and a loss that is not
        # finite has nothing to do with the scale.
        overflows = tf.math.is_finite(loss) & ~tf.math.is_finite(gradient_norm)
        applies |= overflows
        gradients = [tf.where(overflows, float("nan"), gradients[0]), *gradients[1:]]

    def apply(gradients: list[tf.Tensor]) -> None:
        model.optimizer.apply(gradients, model.trainable_weights)

    optimizer = model.optimizer
    is_graph_of_cpus = not (tf.executing_eagerly() or cpu_kernels.has_gpus() or tf.distribute.has_strategy())
    is_plain = isinstance(optimizer, NVAEAdamax) and not (
        optimizer.use_ema or optimizer.weight_decay or optimizer.gradient_accumulation_steps
    )
    if is_plain and (is_graph_of_cpus or _is_small_program(model)):
        optimizer.apply_if(applies, gradients, model.trainable_weights)
    else:
        _on_all_replicas_if(applies, apply, gradients)
    for variable, value in step.updates:
        variable.assign(tf.where(accepted, value, variable))
    batch_size = step.batch_size * replica_count()
    _on_all_replicas_if(accepted, lambda metrics: model.running.track(metrics, batch_size), step.metrics)
    model.recent.keep(step.metrics, accepted)
    model.step_guard.observe(loss, accepted)
    model.running.skipped_steps.update_state(tf.where(accepted, 0.0, 1.0))


def initialize_scales(model: "NVAE", images: tf.Tensor) -> None:
    """Sets the scales of data-dependent layers from the first batch."""
    forward = _forward_pass(model, initializing=True)
    model._inference_pass(images, draws(model, images, 0), forward)
    # A bad image must not decide for good; the moments are those of all replicas, so all find the same.
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for _, value in forward.updates])
    for variable, value in forward.updates:
        variable.assign(tf.where(finite, value, variable))
    model.data_initialised.assign(tf.cast(finite, tf.float32))


def _forward_pass(model: "NVAE", **settings) -> ForwardPass:
    # Replicas can't communicate from within a loop of the graph.
    return ForwardPass(training=True, scanned=model.scan and replica_count() == 1, **settings)


def _is_small_program(model: "NVAE") -> bool:
    # Joining small weights takes longer on CPUs, which need not compile the program.
    return model.scan and replica_count() == 1 and cpu_kernels.has_gpus()


def _scaled(model: "NVAE", loss: tf.Tensor | float) -> tf.Tensor:
    # The optimizer adds those of all replicas, and may have it scaled.
    return model.optimizer.scale_loss(loss / replica_count())


def _gradients_or_zeros(model: "NVAE", tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
    # TensorFlow's `unconnected_gradients` does not know Keras' variables.
    pairs = zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True)
    return [tf.zeros(weight.shape) if gradient is None else gradient for weight, gradient in pairs]


def _metrics(model: "NVAE", gradients: list, means: list, spectral_norms: tf.Tensor) -> StepMetrics:
    if _is_small_program(model):
        gradients = Packing(gradients, SMALL_WEIGHT).pack(gradients)
    squares = 2.0 * tf.reduce_sum(tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients]))
    *means, square = replica_means([*means, squares / tf.square(_scaled(model, 1.0))])
    return StepMetrics(*means, tf.stop_gradient(spectral_norms), tf.sqrt(square))


def _on_all_replicas_if(condition: tf.Tensor, function: Callable, *values) -> None:
    """`function(*values)` on every replica if a condition holds, which is the same on all."""

    # Replicas update variables together: under a condition only if all of them enter it as one.
    def together(strategy: tf.distribute.Strategy, condition, *values) -> None:
        condition = strategy.experimental_local_results(condition)[0]

        def update() -> None:
            strategy.extended.call_for_each_replica(function, args=values)

        tf.cond(condition, update, lambda: None)

    tf.distribute.get_replica_context().merge_call(together, args=(condition, *values))
