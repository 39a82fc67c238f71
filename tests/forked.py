"""`python -m MODULE` as a fork of a process that has imported TensorFlow: it begins some five seconds sooner.

There is one such process a test process, `multiprocessing`'s server of forks. It has only imported: flags, devices and
threads are each fork's own, as in a process that is started anew.
"""

import atexit
import faulthandler
import functools
import gc
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection

from nvae_tf.errors import start_tensorflow_quietly

FORKS = multiprocessing.get_context("forkserver")
# The last three are what commands import when they need it: matplotlib, and scikit-learn, which has the digits.
FORKS.set_forkserver_preload(
    ["tensorflow", "tensorflow_probability", "nvae_tf.training.loop", "nvae_tf.reports.evaluate"]
    + ["nvae_tf.command_line", "nvae_tf.reports.figures", "sklearn.datasets"]
)
# Before multiprocessing waits for the processes that a failed test has left.
atexit.register(lambda: [process.kill() for process in multiprocessing.active_children()])


def without_stack_traces():
    """Operations of graphs don't note each where it was made, which takes a tenth of the time of most tests.

    All have the trace of the first: there must be one, XLA looks for the user's line in it.
    """
    module = sys.modules["tensorflow.python.util.tf_stack"]
    if not hasattr(module.extract_stack, "cache_info"):
        module.extract_stack = functools.cache(module.extract_stack)


def _main(arguments, folder, environment, *streams):
    # What is imported is there for good; graphs live long.
    gc.freeze()
    gc.set_threshold(200_000, 20, 1000)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    faulthandler.enable(2)
    # As `python -u` does.
    unbuffered = (open(number, "wb", buffering=0, closefd=False) for number in (1, 2))
    sys.stdout, sys.stderr = (io.TextIOWrapper(output, write_through=True) for output in unbuffered)
    # A fork copies locks that other threads of its parent hold, but not the threads that would release them. Checked
    # only now, because OpenBLAS ends its threads at a fork.
    assert len(os.listdir(f"/proc/{os.getppid()}/task")) == 1, "The imports before the fork have started threads."
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, folder)
    # What it writes when it looks for devices is hidden while it is imported, which has been.
    start_tensorflow_quietly()
    without_stack_traces()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")


class Forked:
    """Used as `subprocess.Popen` is; of the outputs the first may be a pipe."""

    def __init__(self, arguments, cwd, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT):
        if stdout == subprocess.PIPE:
            read, end = os.pipe()
            self.stdout = open(read)
        else:
            end = os.dup(stdout.fileno())
        streams = Connection(end), Connection(os.dup(end if stderr == subprocess.STDOUT else stderr.fileno()))
        self._process = FORKS.Process(target=_main, args=([*map(str, arguments)], str(cwd), dict(env), *streams))
        self._process.start()
        for stream in streams:
            stream.close()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a fork", timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Until what is printed ends; a fork that hangs is found by whoever waits for the tests."""
        printed = self.stdout.read()
        return printed, self.wait(timeout) and None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(arguments, cwd, env):
    """The finished process, with all that it has printed; one that hangs is aborted, and prints where."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Forked(arguments, cwd, env, stdout, stderr)
        try:
            code = process.wait(600)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            code = process.wait()
        texts = [stream.seek(0) or stream.read() for stream in (stdout, stderr)]
    return subprocess.CompletedProcess(arguments, code, *texts)
