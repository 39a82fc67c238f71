"""What `fit`, `evaluate` and `predict` of Keras need: the steps, and one-line errors for data that do not fit."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import LARGEST_SEED, check, whole_number
from nvae_tf.layers import FoldedPass
from nvae_tf.models import training_step
from nvae_tf.models.images import check_batch, check_classes, check_images, check_pixels, with_one_line_errors
from nvae_tf.models.latents import batch_size_of, check_labels
from nvae_tf.models.passes import inference_pass
from nvae_tf.replicas import replica_count, replica_means

# Of methods without tensor-dependent branches: in a caller's graph, autograph would double the time of tracing.
WITHOUT_AUTOGRAPH = tf.autograph.experimental.do_not_convert


def images_and_labels(model, data, may_lack_labels: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Images and, for a conditional model, their labels; other models do not use labels."""
    images, labels, *_ = [*data, None] if isinstance(data, (tuple, list)) else (data, None)
    images = check_batch(images, model.config)
    if not model.config.num_classes or (labels is None and may_lack_labels):
        return images, None
    check(labels is not None, "this model has classes (model.num_classes): give (images, labels), not images alone")
    return images, check_labels(labels, batch_size_of(images), model.config.num_classes)


class Loss(NamedTuple):
    """The training loss of a batch, as `NVAE.loss` gives it, in nats per image; KLs are without weights."""

    total: tf.Tensor  # what is differentiated, scalar
    reconstruction: tf.Tensor  # -log p(x | z), `[batch]`
    kl: tf.Tensor  # `[batch]`
    kl_per_group: tf.Tensor  # mean over the images, `[groups]`, top group first
    kl_per_scale: tf.Tensor  # the same, `[scales]`, the smallest first
    regularizers: tf.Tensor  # their part of `total`, scalar
    updates: list[tuple[keras.Variable, tf.Tensor]]  # running statistics and vectors of power iterations: new values


class FittedModel(keras.Model):
    """The base of `NVAE`: a `keras.Model` whose steps are the paper's, and which has its loss and its metrics."""

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` reports, see `RunningMetrics`."""
        return self.running.training_metrics

    @WITHOUT_AUTOGRAPH
    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `fit` on a batch of images in [0, 1], or `(images, labels)`; refuses what `fit` refuses."""
        images, labels = images_and_labels(self, data)
        check_images(images, self.config, scored=True, nan_allowed=True)
        return training_step.train_step(self, images, labels)

    @WITHOUT_AUTOGRAPH
    def loss(self, images, labels=None, step=None, seed: int | None = None) -> Loss:
        """The training loss of a batch, and its parts, for a training loop of one's own; differentiate `total`.

        Images are `[batch, height, width, channels]` in [0, 1], labels `[batch]` for a model with classes. The KL's
        weight depends on the number of steps taken, `step`, and all draws on it and the seed (None: the model's).
        Without `step` it is the step of the compiled optimizer. Data-dependent layers set their scales from the first
        batch; nothing else changes: assign the `updates`. ValueError as `fit` raises it.
        Example: docs/python.md has the loop.
        """
        images, labels = images_and_labels(self, (images, labels))
        check_images(images, self.config, scored=True, nan_allowed=True)
        if step is None:
            optimizer = getattr(self, "optimizer", None)
            check(optimizer is not None, "loss: give step=, the number of steps taken, or compile the model before")
            step = optimizer.iterations
        seed = seed if seed is None or isinstance(seed, tf.Tensor) else whole_number("seed", seed, -LARGEST_SEED)
        training_step.initialize_scales_once(self, images)
        noise = training_step.draws(self, images, step, seed=seed)
        forward = training_step.training_pass(self, training_step.kept_labels(self, labels, step, seed=seed))
        metrics, elbo, regularizers = training_step.loss_terms(self, images, noise, step, forward)
        kl, per_group = tf.reduce_sum(elbo.kl, axis=1), metrics.kl_per_group
        per_scale = tf.stack([tf.reduce_sum(tf.gather(per_group, scale.groups)) for scale in self.plan.scales])
        return Loss(metrics.loss, elbo.reconstruction, kl, per_group, per_scale, regularizers, forward.updates())

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "loss":  # Keras sets it to what `compile(loss=)` is given, which has no effect
            super().__setattr__(name, value)

    def predict_step(self, data) -> tf.Tensor:
        """One step of `predict`: the reconstructions' means, of `(images, labels)` with their classes."""
        images, labels = images_and_labels(self, data, may_lack_labels=True)
        return self(images, labels=labels)

    @WITHOUT_AUTOGRAPH
    def test_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `evaluate`: the negative bound in nats; every batch gets the same draws."""
        images, labels = images_and_labels(self, data)
        check_images(images, self.config, scored=True)
        noise = training_step.draws(self, images, -1)
        elbo = inference_pass(self, images, noise, FoldedPass(labels=labels)).elbo(images)
        reconstruction, kl = replica_means([tf.reduce_mean(elbo.reconstruction), tf.reduce_mean(elbo.kl, axis=0)])
        kl = tf.reduce_sum(kl)
        self.running.track_bound(reconstruction + kl, reconstruction, kl, batch_size_of(images) * replica_count())
        return training_step.metric_values(self.running.evaluation_metrics)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` runs. Images that are not finite pass, and the step guard skips their step."""
        check(self.optimizer is not None, "the model has no optimizer: compile(optimizer=nvae_tf.NVAEAdamax())")
        if self._compile_loss is not None or self._compile_metrics is not None:
            warnings.warn("loss and metrics of `compile` have no effect: the model has its own", stacklevel=2)
        if not self.optimizer.built:
            # The first trace of the step would make the slots, and a refused batch breaks it off.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        self._make_checked_function("train", super().make_train_function, force)

    def make_test_function(self, force: bool = False) -> None:
        """Makes what `evaluate` runs."""
        self._make_checked_function("test", super().make_test_function, force)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes what `predict` runs."""
        self._make_checked_function("predict", super().make_predict_function, force)

    def _make_checked_function(self, kind: str, make: Callable, force: bool) -> None:
        name = f"{kind}_function"
        if getattr(self, name) is None or force:
            self._kind_of_step = kind
            make(force)
            setattr(self, name, with_one_line_errors(getattr(self, name)))

    def _autoconvert_optionals(self, step_func: Callable) -> Callable:
        # Keras calls this private method outside the step that XLA compiles, so assertions can run here.
        step, kind = super()._autoconvert_optionals(step_func), self._kind_of_step
        how = self.config, kind != "predict", kind == "train"

        def checked(data):
            images, labels, weights, *_ = (*(data if isinstance(data, (tuple, list)) else (data,)), None, None)
            if weights is not None:
                warnings.warn("sample weights have no effect: the loss is the mean over all images", stacklevel=2)
            shards, num_classes = self.distribute_strategy.experimental_local_results, self.config.num_classes
            with tf.device("CPU:0"):  # where batches come from, so that no accelerator waits for the checks
                checks = [check_pixels(check_batch(shard, self.config), *how) for shard in shards(images)]
                if num_classes and labels is not None:
                    checks += [check_classes(shard, num_classes) for shard in shards(labels)]
            # The data itself waits for the checks: on several replicas a reduction that has begun when a check fails
            # is broken off, and with it every later one of the process.
            with tf.control_dependencies(tf.nest.flatten(checks)):
                checked_data = tf.nest.map_structure(
                    lambda value: None if value is None else tf.identity(value), data, expand_composites=True
                )
            return step(checked_data)

        return checked
