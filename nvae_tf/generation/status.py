"""What the modes of `train.generate` say while they work."""

from collections.abc import Callable

from nvae_tf.progress import StatusLine


def images_done(status: StatusLine, total: int) -> Callable[[int], None]:
    """A function that shows how many images are done, now and then."""
    progress = status.report().progress
    return lambda done: progress(f"{done:,} of {total:,} images")


def counted(count: int, what: str) -> str:
    """`1 picture`, `1,000 pictures`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def at_temperature(temperature: float | list[float]) -> str:
    """`temperature 0.7` or `temperatures 0.7, 0.8`."""
    if isinstance(temperature, list):
        return f"temperatures {', '.join(f'{value:g}' for value in temperature)}"
    return f"temperature {temperature:g}"
