"""How a model learns: the loss of a batch, its gradients, and a step that is taken as a whole or not at all."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from nvae_tf import objective as objectives
from nvae_tf.layers import ForwardPass
from nvae_tf.models.gradients import sum_over_parts
from nvae_tf.models.images import assert_unit_range, training_images, with_one_line_errors
from nvae_tf.models.metrics import StepMetrics
from nvae_tf.models.noise import batch_noise
from nvae_tf.replicas import replica_count, replica_index, replica_means
from nvae_tf.setting_checks import check


class StepLoss(NamedTuple):
    """The loss of one replica's images.

    Attributes:
      elbo: the bound's parts, an image.
      loss: what is differentiated, and its parts.
      spectral_norms: of every layer, `[layers]`.
    """

    elbo: objectives.Elbo
    loss: objectives.TrainingLoss
    spectral_norms: tf.Tensor


class _Step(NamedTuple):
    """A step that may be taken: the gradients of all replicas' mean loss / replicas, and what follows with them."""

    gradients: list[tf.Tensor]
    updates: list[tuple[keras.Variable, tf.Tensor]]
    figures: StepMetrics
    batch_size: int | tf.Tensor


class _Part(NamedTuple):
    """What one part of a batch adds to a step; `means` as `_means` has them."""

    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    means: list[tf.Tensor]


class TrainingMixin:
    """The methods of `NVAE` that train and evaluate it, as `fit` and `evaluate` call them."""

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `fit` on a batch of images in [0, 1]; the draws depend on the seed and the step alone.

        On several replicas each has its part of the batch, and all of them take the step of the whole batch.
        """
        images = self._images_of(data)
        step = self.optimizer.iterations
        if self.is_data_dependent:
            _on_all_replicas_if(self.data_initialised < 1.0, self._initialise_from, images)
        whole = self.accumulate_steps == 1
        self._take_if_sound(self._step(images, step) if whole else self._step_in_parts(images, step))
        return self._results(self.running.of_training)

    def training_loss(
        self, images: tf.Tensor, noise: Sequence[tf.Tensor], step: tf.Tensor, forward: ForwardPass
    ) -> StepLoss:
        """The bound's parts and the loss at a step, see `nvae_tf.objective`."""
        norms, regularizers = self._regularizers(forward)
        inputs, regularizers = objectives.gradients_after_network(images, regularizers)
        return self._loss(inputs, images, noise, step, forward, norms, regularizers)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `evaluate`: the negative bound in nats, with running batch-norm statistics.

        Every batch gets the same draws; `nvae_tf.evaluation` gives each image its own.
        """
        images = self._images_of(data)
        elbo = self.infer(images, self._noise(images, -1)).elbo(images)
        reconstruction, kl = replica_means([tf.reduce_mean(elbo.reconstruction), tf.reduce_mean(elbo.kl, axis=0)])
        total = tf.reduce_sum(kl)
        self.running.track_bound(reconstruction + total, reconstruction, total, _batch_size(images) * replica_count())
        return self._results(self.running.of_evaluation)

    def fit(self, *args, class_weight=None, **kwargs) -> keras.callbacks.History:
        """As `keras.Model.fit`.

        Raises:
          ValueError: the images are not floats in [0, 1] of the model's size; the model stays as it was. Or there are
            weights of classes.
        """
        _refuse_class_weight(class_weight)
        return super().fit(*args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """As `keras.Model.train_on_batch`; refuses what `fit` does."""
        _refuse_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` runs. Images with NaN pass, and the step guard refuses their step."""
        if self.optimizer is None:
            raise ValueError("the model has no optimizer: compile(optimizer=nvae_tf.NVAEAdamax())")
        if self._compile_loss is not None or self._compile_metrics is not None:
            warnings.warn("loss and metrics of `compile` have no effect: the model has its own", stacklevel=2)
        if not self.optimizer.built:
            # Else they would be made by the first trace of the step, which a refused batch breaks off.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        self._make_function_of("train", super().make_train_function, force, nan_allowed=True)

    def make_test_function(self, force: bool = False) -> None:
        """Makes what `evaluate` runs."""
        self._make_function_of("test", super().make_test_function, force)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes what `predict` runs."""
        self._make_function_of("predict", super().make_predict_function, force)

    def _make_function_of(self, kind: str, make: Callable, force: bool, nan_allowed: bool = False) -> None:
        name = f"{kind}_function"
        if getattr(self, name) is None or force:
            self._nan_allowed = nan_allowed
            make(force)
            setattr(self, name, with_one_line_errors(getattr(self, name)))

    def _autoconvert_optionals(self, step_func: Callable) -> Callable:
        # Keras wraps in this what it does with a batch, be it compiled by XLA or not: the one place outside of that.
        step, nan_allowed = super()._autoconvert_optionals(step_func), self._nan_allowed

        def checked(data):
            images, *others = data if isinstance(data, (tuple, list)) else (data,)
            if len(others) > 1 and others[1] is not None:
                warnings.warn("sample weights have no effect: the loss is the mean over all images", stacklevel=2)
            replicas = self.distribute_strategy.experimental_local_results(images)
            checks = [assert_unit_range(training_images(part, self.config), nan_allowed) for part in replicas]
            # The data itself waits for the checks: on several replicas a reduction that has begun when a check fails
            # is broken off, and with it every later one of the process.
            with tf.control_dependencies(checks):
                checked_data = tf.nest.map_structure(
                    lambda value: None if value is None else tf.identity(value), data, expand_composites=True
                )
            return step(checked_data)

        return checked

    def _loss(self, inputs, images, noise, step, forward, norms, regularizers) -> StepLoss:
        elbo = self.infer(inputs, noise, forward).elbo(images)
        beta = objectives.kl_weight(step, self.objective)
        weight = objectives.regularization_weight(beta, self.objective)
        scales = objectives.balancing_scales(self.plan)
        return StepLoss(elbo, objectives.training_loss(elbo, beta, scales, regularizers, weight), norms)

    def _regularizers(self, forward: ForwardPass) -> tuple[tf.Tensor, tf.Tensor]:
        """Every layer's spectral norm, and the sum of both regularizers."""
        norms = tf.concat(self.spectral_regularizer.norms(forward), axis=0)
        total = tf.reduce_sum(norms)
        return norms, total + (objectives.batch_norm_loss(self.batch_norms) if self.batch_norms else 0.0)

    def _step(self, images: tf.Tensor, step: tf.Tensor) -> _Step:
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            found = self.training_loss(images, self._noise(images, step), step, forward)
            scaled_loss = self._scaled(found.loss.loss)
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        figures = self._figures(gradients, _means(found), found.spectral_norms)
        return _Step(gradients, forward.updates, figures, _batch_size(images))

    def _step_in_parts(self, images: tf.Tensor, step: tf.Tensor) -> _Step:
        """The mean step of equal parts of the batch; each has its own batch statistics and KL balancing."""
        count = self.accumulate_steps
        size = _part_size(images, count)
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            norms, regularizers = self._regularizers(forward)
            beta = objectives.kl_weight(step, self.objective)
            weighted = regularizers * objectives.regularization_weight(beta, self.objective)
            scaled_loss = self._scaled(weighted)
        gradients = self._gradients_or_zeros(tape, scaled_loss)
        statistics = [variable for norm in self.batch_norms for variable in norm.statistics]

        def part(index: tf.Tensor) -> _Part:
            pass_of_part = ForwardPass(training=True)
            some = tf.slice(images, [index * size, 0, 0, 0], [size, *images.shape[1:]])
            noise = self._noise(some, step, replica_index() * count + index)
            with tf.GradientTape() as tape:
                found = self._loss(some, some, noise, step, pass_of_part, norms, 0.0)
                scaled_loss = self._scaled(found.loss.loss) / count
            gradients = self._gradients_or_zeros(tape, scaled_loss)
            values = {id(variable): value for variable, value in pass_of_part.updates}
            shares = [[value / count for value in of] for of in ([values[id(v)] for v in statistics], _means(found))]
            return _Part(gradients, *shares)

        means = [tf.zeros([]), tf.zeros([]), tf.zeros([self.plan.num_groups])]
        sums = sum_over_parts(part, count, _Part(self.trainable_weights, statistics, means))
        gradients = [one + other for one, other in zip(gradients, sums.gradients, strict=True)]
        loss, *means = sums.means
        forward.updates += zip(statistics, sums.statistics, strict=True)
        figures = self._figures(gradients, [loss + weighted, *means], norms)
        return _Step(gradients, forward.updates, figures, size * count)

    def _gradients_or_zeros(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        weights = self.trainable_weights
        pairs = zip(weights, tape.gradient(loss, weights), strict=True)
        return [tf.zeros(weight.shape) if gradient is None else gradient for weight, gradient in pairs]

    def _figures(self, gradients: list[tf.Tensor], means: list[tf.Tensor], norms: tf.Tensor) -> StepMetrics:
        squares = tf.reduce_sum(tf.stack([2.0 * tf.nn.l2_loss(gradient) for gradient in gradients]))
        *means, square = replica_means([*means, squares / tf.square(self._scaled(1.0))])
        return StepMetrics(*means, tf.stop_gradient(norms), tf.sqrt(square))

    def _scaled(self, loss: tf.Tensor | float) -> tf.Tensor:
        """The replica's share of the loss; the optimizer adds those of all, and may have it scaled."""
        return self.optimizer.scale_loss(loss / replica_count())

    def _take_if_sound(self, step: _Step) -> None:
        """Updates weights, slots and running statistics, all or none of them, as the step guard decides."""
        variables = [variable for variable, _ in step.updates]
        values = [value for _, value in step.updates]
        accepted = self.step_guard.accepts(step.figures.loss, step.figures.gradient_norm)
        applies, gradients = accepted, step.gradients
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # Gradients that overflow are how it learns to scale less. It looks at them by itself, but at those of its
            # replica alone; and a loss that is not finite is no matter of the scale.
            overflows = tf.math.is_finite(step.figures.loss) & ~tf.math.is_finite(step.figures.gradient_norm)
            applies |= overflows
            gradients = [tf.where(overflows, float("nan"), gradients[0]), *gradients[1:]]

        def apply(gradients: list[tf.Tensor]) -> None:
            self.optimizer.apply(gradients, self.trainable_weights)

        def follow(values: list[tf.Tensor], figures: StepMetrics) -> None:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            self.running.track(figures, step.batch_size * replica_count())

        _on_all_replicas_if(applies, apply, gradients)
        _on_all_replicas_if(accepted, follow, values, step.figures)
        self.recent.keep(step.figures, accepted)
        self.step_guard.observe(step.figures.loss, accepted)
        self.running.skipped_steps.update_state(tf.where(accepted, 0.0, 1.0))

    def _noise(self, images: tf.Tensor, step: tf.Tensor | int, part: int | tf.Tensor | None = None) -> list[tf.Tensor]:
        """The draws of these images, which are a replica's, or one of all replicas' parts, counted from 0."""
        batch_size = _batch_size(images)
        first = (replica_index() if part is None else part) * batch_size
        return batch_noise(self.plan.latent_shapes(), batch_size, (self.seed, tf.cast(step, tf.int32)), first)

    def _initialise_from(self, images: tf.Tensor) -> None:
        """Data-dependent layers take their scales from the first batch."""
        forward = ForwardPass(training=True, initializing=True)
        self.infer(images, self._noise(images, 0), forward)
        # A bad image must not decide for good; the moments are those of all replicas, so all find the same.
        sound = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for _, value in forward.updates])
        for variable, value in forward.updates:
            variable.assign(tf.where(sound, value, variable))
        self.data_initialised.assign(tf.cast(sound, tf.float32))

    def _results(self, metrics: Sequence[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
        # Several workers' `fit` joins their figures along an axis, which scalars lack.
        several = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
        return {metric.name: tf.reshape(metric.result(), [1] if several else []) for metric in metrics}

    def _images_of(self, data) -> tf.Tensor:
        """The images of a batch; a dataset may also give labels or weights, which are not used."""
        return training_images(data[0] if isinstance(data, (tuple, list)) else data, self.config)


def _means(found: StepLoss) -> list[tf.Tensor]:
    """Loss, reconstruction and KL of every group."""
    return [found.loss.loss, tf.reduce_mean(found.elbo.reconstruction), tf.reduce_mean(found.elbo.kl, axis=0)]


def _refuse_class_weight(class_weight: object) -> None:
    check(
        class_weight is None,
        "class_weight has no effect: the loss is the mean over all images, whatever their class; leave it out",
    )


def _batch_size(images: tf.Tensor) -> int | tf.Tensor:
    return images.shape[0] or tf.shape(images)[0]


def _part_size(images: tf.Tensor, count: int) -> int:
    size = images.shape[0]
    if size is None or size % count:
        raise ValueError(
            f"a batch of {'unknown size' if size is None else size} can't be cut into accumulate_steps = {count} "
            "equal parts: give batches of a fixed size (drop_remainder=True) that it divides"
        )
    return size // count


def _on_all_replicas_if(condition: tf.Tensor, function, *values) -> None:
    """`function(*values)` on every replica if a condition holds, which is the same on all.

    Replicas update variables together, and can do that under a condition only if all of them enter it as one.
    """

    def together(strategy: tf.distribute.Strategy, condition, *values) -> None:
        condition = strategy.experimental_local_results(condition)[0]

        def update() -> None:
            strategy.extended.call_for_each_replica(function, args=values)

        tf.cond(condition, update, lambda: None)

    tf.distribute.get_replica_context().merge_call(together, args=(condition, *values))
