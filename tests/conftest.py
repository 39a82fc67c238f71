"""What every test shares: quiet logs, equal seeds, the markers, and what becomes of a test that can't run.

* `@pytest.mark.slow`: left out by `make test`, run by `make test-slow` and by .ci/run.
* `@pytest.mark.torch`: needs PyTorch, an optional extra; skipped without it.

With `NVAE_TF_REQUIRE_ALL=1` in the environment a skipped test or file fails the run, so green means all.
"""

import gc
import importlib.util
import os
import random
import resource
import signal
import sys
import tempfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Threads of OpenBLAS wait in loops: a fit of scikit-learn takes with two of them seventeen times the processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# With clients of other tests in the process, gRPC would write into the output of every process that a test starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# What XLA has compiled in one process others need not compile: a kernel takes a sixth of a second, a step far more.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="nvae_tf_xla_", ignore_cleanup_errors=True)
    os.environ.setdefault("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={COMPILED.name}")

import numpy as np
import psutil
import pytest

from tests import forked

# Graphs are many objects that live long, through which Python would look again and again for what is unused.
gc.set_threshold(200_000, 20, 1000)

# They import TensorFlow, which the process that hands the tests out to others (pytest-xdist) does not need.
if "PYTEST_XDIST_WORKER" in os.environ or not any(word.startswith("--numprocesses") for word in sys.argv):
    pytest_plugins = ("tests.command_fixtures", "tests.published_fixtures")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than some seconds; left out by `make test`")
    config.addinivalue_line("markers", "torch: needs PyTorch (the extra `torch`); skipped without it")


# The longest with their slow tests, the longest first.
LONG = """notebooks scan compression mutations explorer derivatives readme_commands strategy evaluate variants training
exported_numbers parity import_and_export conditional saved_model train run tflite sharing wheel benchmarks""".split()


def pytest_collection_modifyitems(items):
    """Long files come first, then others with slow tests: no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (places.get(item.path.stem, len(LONG)), item.path not in slow))


def pytest_runtest_setup(item):
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")


@pytest.fixture(autouse=True, scope="session")
def hangups():
    """Under `nohup` SIGHUP is ignored, and commands that tests start would inherit that; a handler is not inherited."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True)
def equal_seeds():
    """Gives each test the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)


@pytest.fixture(autouse=True, scope="module")
def rewriting(request):
    """Turns off the rewriting of graphs, as training on a CPU does: building a graph then takes half the time.

    Not where graphs are run as by servers, by users of Keras, and by processes whose numbers must be the same.
    """
    if "tensorflow" in sys.modules:
        rewritten = "serving" in request.path.parts or request.path.name in ("test_keras.py", "test_evaluate.py")
        options = {"disable_meta_optimizer": not rewritten}
        sys.modules["tensorflow"].config.optimizer.set_experimental_options(options)
        forked.without_stack_traces()


@pytest.fixture(autouse=True, scope="module")
def forgotten_graphs():
    """Forgets the graphs of the file's tests.

    TensorFlow keeps the gradient of each function in a graph by a name of its own, for good, and with it the graph: the
    processes of the tests would grow to 10 GB. Collected here, as a file's last test still holds what it was given.
    """
    gc.collect()
    gc.freeze()
    registered = sys.modules["tensorflow.python.framework.ops"].gradient_registry._registry
    before = set(registered)
    yield
    for name in set(registered) - before - _gradients_of_shared_functions():
        del registered[name]


def _gradients_of_shared_functions():
    """The names of the custom gradients in functions that all models of a process share."""
    modules = "nvae_tf.layers.normalization", "nvae_tf.objective.regularization"
    if not {*modules} <= {*sys.modules}:
        return set()
    functions = sys.modules[modules[0]]._as_moments, sys.modules[modules[1]]._norms
    graphs = [concrete.graph for function in functions for concrete in function._list_all_concrete_functions()]
    nodes = [operation.node_def for graph in graphs for operation in graph.get_operations()]
    return {node.attr["_gradient_op_type"].s.decode() for node in nodes if "_gradient_op_type" in node.attr}


@pytest.fixture
def small_files():
    """`small_files(size)`: no file of this process may grow beyond a size, as on a full disk; None ends it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or limits[0], limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def free_memory(monkeypatch):
    """`free_memory(size)`: this number of bytes of memory is free."""
    return lambda size: monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=size))


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NVAE_TF_REQUIRE_ALL", "0") != "0" and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
