"""What is evaluated, and on which devices."""

import dataclasses
import math
import os
import pathlib

import tensorflow as tf

from nvae_tf.data.pipeline import Shard, content_digest
from nvae_tf.data.sources import ImageSource, load_split, place_of
from nvae_tf.data.spec import check_model_fits
from nvae_tf.data_spec import DataSpec
from nvae_tf.progress import StatusLine
from nvae_tf.training.checkpoint_files import checkpoint_sha256
from nvae_tf.training.devices import select_devices
from nvae_tf.training.loading import TrainedRun, load_run
from nvae_tf.training.run_data import spec_to_read
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.strategy import Cluster


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """A checkpoint of a run and a part of its data set.

    Attributes:
      folder: the run's.
      trained: its settings and the model, with the checkpoint's weights.
      checkpoint_sha256: of the checkpoint's files, which may be deleted meanwhile by a training that runs.
      spec: the data set.
      split: "train" or "test".
      source: its images.
      data_sha256: of some of them, see `content_digest`.
      batch_size: images at a time, of all replicas of this process.
      seed: of the binarization and of all draws.
      strategy: where the replicas are.
      share: which of several processes this is.
      status: where progress is shown.
    """

    folder: RunFolder
    trained: TrainedRun
    checkpoint_sha256: str
    spec: DataSpec
    split: str
    source: ImageSource
    data_sha256: str
    batch_size: int
    seed: int
    strategy: tf.distribute.Strategy
    share: Shard
    status: StatusLine

    @property
    def place(self) -> str:
        """Where the data lie, for people."""
        return place_of(self.spec)


def open_task(
    workdir: str | os.PathLike,
    checkpoint: str = "latest",
    split: str = "test",
    batch_size: int | None = None,
    seed: int = 0,
    data_path: str | None = None,
    replicas: int = 0,
) -> EvaluationTask:
    """Loads the model and finds the images.

    Args:
      workdir: the run folder.
      checkpoint: "latest" or "best".
      split: "train" or "test".
      batch_size: images at a time on a replica; that of the training if not given.
      seed: of the binarization and of all draws.
      data_path: where the images lie, if no longer where they were during training.
      replicas: so many GPUs, all for 0; where there are none, so many parts of the CPU.

    Raises:
      FileNotFoundError, ValueError, ConnectionError: see `nvae_tf.load` and `load_split`; or the devices are not there.
    """
    cluster = Cluster.from_environment()
    devices = select_devices(replicas)
    strategy = tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        trained = load_run(workdir, checkpoint)
    sha256 = checkpoint_sha256(trained.checkpoint)
    spec = spec_to_read(trained.config, data_path)
    check_model_fits(trained.config.model, spec)
    status = StatusLine()
    source = load_split(spec, split, status.report())
    of_replica = min(batch_size or trained.config.train.batch_size, math.ceil(source.count / len(devices)))
    return EvaluationTask(
        RunFolder(pathlib.Path(workdir)),
        trained,
        sha256,
        spec,
        split,
        source,
        content_digest(source, spec),
        of_replica * len(devices),
        seed,
        strategy,
        Shard(cluster.index, cluster.count),
        status,
    )
