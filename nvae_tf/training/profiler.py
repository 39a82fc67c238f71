"""The profile of some training steps, for TensorBoard."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from nvae_tf.errors import first_line


class StepProfiler(contextlib.AbstractContextManager):
    """Profiles the steps from one to another, counted from 1, once; without steps it does nothing. Never ends a run.

    A run that continues behind the first step has no profile: the first steps of a process build graphs. A profile ends
    after its last step, at a step outside (of a run that goes back), or with the block.
    """

    def __init__(self, steps: tuple[int, ...], folder: pathlib.Path, report: Callable[[str], None]):
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder, self._report = folder, report
        self._newest: int | None = None  # the newest step in the profile that is running

    def __exit__(self, *_: object) -> None:
        self._stop()

    def note_steps(self, first: int, last: int) -> None:
        """Reports if a run from one step to another will have no profile."""
        if self._steps and first <= last and not first <= self._steps[0] <= last:
            begin = self._steps[0]
            self._report(f"No profile: train.profile_steps begin with {begin}, this run makes steps {first} to {last}.")

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A block in which the step of this number is taken."""
        if number not in self._steps:
            self._stop()
        elif self._newest is not None:
            self._newest = number
        elif number == self._steps[0]:
            with self._errors_reported():
                tf.profiler.experimental.start(str(self._folder))
                self._newest = number
        # The name and `_r` are what TensorBoard finds steps by.
        with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
            yield
        if number == self._newest == self._steps[-1]:
            self._stop()

    def _stop(self) -> None:
        if self._newest is None:
            return
        with self._errors_reported():
            # A GPU may still be busy with the last step.
            tf.test.experimental.sync_devices()
            tf.profiler.experimental.stop()
            self._report(f"A profile of steps {self._steps[0]} to {self._newest} is in {self._folder}.")
        self._steps, self._newest = range(0), None

    @contextlib.contextmanager
    def _errors_reported(self) -> Iterator[None]:
        try:
            yield
        # Whatever a profiler's driver raises: a run of days is worth more than its profile.
        except Exception as error:
            reason = first_line(error).rstrip(".")
            self._report(f"No profile of steps {self._steps[0]} to {self._steps[-1]}: {reason}. The run goes on.")
            self._steps, self._newest = range(0), None
