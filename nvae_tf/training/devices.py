"""Settings of TensorFlow's runtime that suit the devices that are there; before the first of them is used."""

import tensorflow as tf

from nvae_tf.config import check


def configure_runtime() -> None:
    """On a CPU alone, leaves out grappler's rewriting of graphs.

    It takes longer than everything else before the first step (on the MNIST preset 16 s of processor time, 10 s
    without), and the steps that follow are no faster for it. Graphs are built small to begin with, see
    `nvae_tf.layers.stacked`.
    """
    if not gpus():
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def gpus() -> list:
    """The GPUs that this process may use."""
    return tf.config.get_visible_devices("GPU")


def select_devices(count: int) -> list[str]:
    """Takes so many GPUs, all for 0, or where there is none, so many parts of the CPU.

    Returns:
      The names of the devices.

    Raises:
      ValueError: there are fewer GPUs, or TensorFlow has been used already.
    """
    found = gpus()
    if not found:
        return _parts_of_cpu(max(count, 1))
    check(
        count <= len(found),
        f"train.replicas = {count}: there are {len(found)} GPUs; take no more, or 0 for all of them",
    )
    taken = found[: count or len(found)]
    _before_use(lambda: tf.config.set_visible_devices(taken, "GPU"), len(taken) == len(found))
    return [f"GPU:{index}" for index in range(len(taken))]


def _parts_of_cpu(count: int) -> list[str]:
    def divide() -> None:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)

    _before_use(divide, count == 1)
    return [f"CPU:{index}" for index in range(count)]


def _before_use(configure, is_so: bool) -> None:
    if is_so:
        return
    try:
        configure()
    except RuntimeError as error:
        raise ValueError(
            "train.replicas can't be followed any more: TensorFlow has used its devices in this process. "
            "Train in a process of its own"
        ) from error
