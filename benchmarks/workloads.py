"""What the benchmarks measure, by name, and the process of a workload, seen from both sides.

    python -m benchmarks.workloads WORKLOAD PRESET FOLDER [S]  serves a workload; S: changed settings of training, JSON

The parent (`worker`) writes one word a line, `ready`, `step` or `summary`, and gets a line of JSON on a pipe made for
that. `benchmarks.all --against` asks the processes of another checkout: keep command and words as they are.
"""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import ROOT, THREADS
from nvae_tf import presets

_MODULES = ("models", "optimization", "data.spec", "training.run", "generation.sampling", "evaluation.likelihood")
# PyTorch's threads, and TensorFlow's; several processes may share a GPU.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), str(THREADS))
ENVIRONMENT |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
_ANSWERS = "BENCHMARK_ANSWERS_FILE_DESCRIPTOR"
_TURN_SECONDS = 0.5  # a turn repeats quick work until they are over
_SESSIONS = contextlib.ExitStack()  # they stay open until the process ends
# The batch sizes of MNIST and CIFAR-10 are as in the published code's times. CelebA's 16 would need 15 GiB.
BATCH_SIZES = {"digits": 60, "mnist": 16, "cifar10": 4, "celeba64": 4}
PRESETS = tuple(BATCH_SIZES)


@contextlib.contextmanager
def worker(name: str, command: list[str], checkout: pathlib.Path = ROOT) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs a program that calls `serve`; gives the function that sends it a word and returns the answer.

    ChildProcessError: the program has ended instead.
    """
    answers, answers_of_worker = os.pipe()
    process = subprocess.Popen(
        command,
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=sys.__stderr__,  # standard output is for the results alone
        text=True,
        pass_fds=[answers_of_worker],
        env=os.environ | ENVIRONMENT | {_ANSWERS: str(answers_of_worker)},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the worker quietly
    )
    os.close(answers_of_worker)
    with os.fdopen(answers) as lines:

        def ask(word: str) -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):
                print(word, file=process.stdin, flush=True)
            answer = lines.readline()
            if not answer:
                raise ChildProcessError(f"worker `{name}`: exit status {process.wait()}, see standard error")
            return json.loads(answer)

        try:
            yield ask
        finally:
            # With the processes that it has started, in its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serve(make: Callable[[], Callable], has_first_step: bool = True) -> None:
    """The other side of `worker`: makes the work, and does it as often as asked.

    The first step is measured with the making of the work; without a first step, the work is done when asked alone.
    """
    start = time.perf_counter()
    work, summary = make(), {"first_step_seconds": None}
    if has_first_step:
        work()
        summary = {"first_step_seconds": time.perf_counter() - start}
    words = {
        "ready": dict,
        "step": lambda: {"seconds": seconds_of(work)},
        "summary": lambda: {"peak_memory_bytes": peak_memory_bytes()} | summary | getattr(work, "summary", dict)(),
    }
    with os.fdopen(int(os.environ[_ANSWERS]), "w") as answers:
        for line in sys.stdin:
            print(json.dumps(words[line.strip()]()), file=answers, flush=True)


def seconds_of(work: Callable) -> float:
    """How long some work takes; quick work is repeated until half a second is over."""
    start, count, seconds = time.perf_counter(), 0, 0.0
    while seconds < _TURN_SECONDS:
        work()
        count, seconds = count + 1, time.perf_counter() - start
    return seconds / count


def peak_memory_bytes() -> int:
    """The most memory that this process has had; getrusage counts the parent's at the start of this one, too."""
    return int(re.search(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024


def python(module: str, *arguments: str | pathlib.Path) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def run_python(module: str, *arguments: str | pathlib.Path) -> int:
    """The peak memory in bytes of a module's command: of its largest process. Ends this one if it fails."""
    process = subprocess.Popen(python(module, *arguments), stdin=subprocess.DEVNULL)
    # Of this child alone, while getrusage has the largest of all that there ever were.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{module} ended with exit status {process.returncode}")
    return usage.ru_maxrss * 1024


def random_images(model_config: Any, batch_size: int) -> Any:
    """Random images `[batch, height, width, channels]` in [0, 1], on the levels that the data has."""
    import tensorflow as tf

    shape = [batch_size, *model_config.image_shape]
    levels = 2 if model_config.likelihood == "bernoulli" else 2**model_config.num_bits
    drawn = tf.random.stateless_uniform(shape, seed=[0, 0], maxval=levels, dtype=tf.int32)
    return tf.cast(drawn, tf.float32) / (levels - 1)


class Training:
    """The training step of a run with some settings `GROUP.NAME`, on random images for all its replicas."""

    def __init__(self, preset: str, batch_size: int, folder: pathlib.Path | None = None, **changed: Any):
        import tensorflow as tf

        from nvae_tf.runs.loading import model_for_training
        from nvae_tf.training import strategy

        changed = {"train.batch_size": batch_size, "train.strategy": "one_device"} | changed
        config = presets.experiment_config(preset, changed)
        self._replicas = strategy.chosen_replicas(config.train)
        compiled, scan = strategy.configure_runtime(config.train, self._replicas.count)
        with self._replicas.strategy.scope():
            # Far from its end: what a step takes does not depend on the length.
            model = model_for_training(config, steps_per_epoch=1000, total_steps=1_000_000).model
            model.optimizer.build(model.trainable_variables)
        model.scan = scan
        with tf.device("CPU:0"):  # where a run's batches come from
            self._images = random_images(config.model, config.train.batch_size * self._replicas.count)
        self._step = strategy.step_function(self._replicas.strategy, model, compiled)
        self._graph = self._step.get_concrete_function(self._replicas.divided(self._images)).graph

    def __call__(self) -> None:
        """Takes a step and waits for its end."""
        for metric in self._step(self._replicas.divided(self._images)).values():
            [part.numpy() for part in self._replicas.strategy.experimental_local_results(metric)]

    def summary(self) -> dict[str, Any]:
        """What else is known, the nodes of the graph with all its functions among it; takes memory of its own."""
        import tensorflow as tf

        graph, gpus = self._graph.as_graph_def(), range(len(tf.config.list_logical_devices("GPU")))
        peaks = [tf.config.experimental.get_memory_info(f"GPU:{index}")["peak"] for index in gpus]
        nodes = len(graph.node) + sum(len(function.node_def) for function in graph.library.function)
        return {"gpu_peak_bytes": peaks, "graph_nodes": nodes}


def sampling(preset: str, batch_size: int, folder: pathlib.Path) -> Callable:
    from nvae_tf.generation.sampling import ImageGenerator
    from nvae_tf.models import NVAE

    generator = ImageGenerator(NVAE(presets.experiment_config(preset).model))
    return functools.partial(generator.generate, batch_size)


def nelbo(preset: str, batch_size: int, folder: pathlib.Path, importance_samples: int = 0) -> Callable:
    from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
    from nvae_tf.models import NVAE

    model = NVAE(presets.experiment_config(preset).model)
    images = random_images(model.config, batch_size)
    evaluator = LikelihoodEvaluator(model, batch_size, importance_samples)
    return lambda: evaluator.evaluate_batch(images, first=0)


def prepare_export(preset: str, folder: pathlib.Path) -> None:
    """Writes a run of one training step on random images, and exports it."""
    run, images = folder / "run", folder / "images.npy"
    if not run.exists():
        shape = [8, *presets.experiment_config(preset).data.image_shape]
        np.save(images, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        data = ["--config.data.source=arrays", f"--config.data.path={images}", "--config.data.crop_box=None"]
        short = ["--config.train.steps=1", "--config.train.batch_size=2"]
        run_python("train.main", f"--config={preset}", f"--workdir={run}", *data, *short)
        run_python("export.export_saved_model", f"--workdir={run}", f"--output={folder / 'output'}")


def export(preset: str, batch_size: int, folder: pathlib.Path) -> Callable:
    def work() -> None:
        shutil.rmtree(folder / "output")
        peak = run_python("export.export_saved_model", f"--workdir={folder / 'run'}", f"--output={folder / 'output'}")
        work.summary = lambda: {"peak_memory_bytes": peak}

    return work


def saved_model_sampling(preset: str, batch_size: int, folder: pathlib.Path) -> Callable:
    from export.run_saved_model import sample, session_of

    run = _SESSIONS.enter_context(session_of(str(folder / "output/1")))
    return functools.partial(sample, run, batch_size, seed=0, temperature=1.0)


def yardstick(preset: str, batch_size: int, folder: pathlib.Path) -> Callable[[], None]:
    """A small PyTorch workload, no model; returns a function that runs one step.

    Its arithmetic resembles one training step of a deep hierarchical VAE (inverted-residual cells with depthwise 5x5,
    batch norm, swish and squeeze-excite; forward, backward, SGD), and it must stay as it is: ratios to it are compared
    with those recorded for other code.
    """
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    parts = nn.ModuleList()

    def cell(width_in: int, width: int, stride: int = 1) -> Callable:
        hidden, bottleneck = 6 * width_in, max(width // 16, 4)
        depthwise = nn.Conv2d(hidden, hidden, 5, stride=stride, padding=2, groups=hidden, bias=False)
        expand, project = nn.Conv2d(width_in, hidden, 1, bias=False), nn.Conv2d(hidden, width, 1, bias=False)
        between = [nn.BatchNorm2d(hidden), nn.SiLU(), depthwise, nn.BatchNorm2d(hidden), nn.SiLU()]
        branch = nn.Sequential(nn.BatchNorm2d(width_in), expand, *between, project, nn.BatchNorm2d(width))
        gate = nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, width), nn.Sigmoid())
        skip = nn.Identity() if width == width_in else nn.Conv2d(width_in, width, 1, stride=stride)
        parts.extend([branch, gate, skip])

        def forward(x: torch.Tensor) -> torch.Tensor:
            y = branch(x)
            return skip(x) + 0.1 * (y * gate(y.mean(dim=(2, 3)))[:, :, None, None])

        return forward

    # (Channels, how many cells) of each stage; a stride-2 cell joins two. The input is 16 x 16.
    stages = {"mnist": ((64, 18), (128, 24)), "cifar10": ((256, 24),)}[preset]
    cells = []
    for index, (width, count) in enumerate(stages):
        cells += [cell(stages[index - 1][0], width, stride=2)] if index else []
        cells += [cell(width, width) for _ in range(count)]
    optimizer = torch.optim.SGD(parts.parameters(), lr=1e-4)
    x = torch.randn(batch_size, stages[0][0], 16, 16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functools.reduce(lambda y, forward: forward(y), cells, x).square().mean().backward()
        optimizer.step()

    return step


class Workload(NamedTuple):
    """`make(preset, batch size, folder, **settings)`, which loads TensorFlow, returns a function that does it once."""

    what: str  # what one turn does, for the table
    make: Callable[..., Callable]
    settings: dict[str, Any] = {}
    batch_sizes: dict[str, int | None] = BATCH_SIZES  # images at a time for every preset; None where there is no batch
    presets: tuple[str, ...] = ("mnist", "cifar10")  # if none are named
    is_slow: bool = False  # one turn a round, and none to warm up
    has_first_step: bool = True  # the yardstick has none, nor has a command, which each turn runs in a new process
    starts_from_export: bool = False


_samples, _none = dict.fromkeys(PRESETS, 16), dict.fromkeys(PRESETS)
WORKLOADS = {
    "training": Workload("training step", Training, presets=PRESETS[1:]),
    "recomputed_training": Workload("training step, train.recompute=all", Training, {"train.recompute": "all"}),
    "bfloat16_training": Workload("training step, bfloat16", Training, {"train.precision": "mixed_bfloat16"}),
    "sampling": Workload("sampling, the model in Python", sampling, batch_sizes=_samples),
    "nelbo": Workload("NELBO of a batch", nelbo),
    "importance_weighted_20": Workload(
        "importance-weighted bound of a batch, K = 20", nelbo, {"importance_samples": 20}, is_slow=True
    ),
    "saved_model_sampling": Workload(
        "sampling, the exported SavedModel", saved_model_sampling, {}, _samples, starts_from_export=True
    ),
    "export": Workload(
        "nvae-export, verified", export, {}, _none, is_slow=True, has_first_step=False, starts_from_export=True
    ),
}
YARDSTICK = Workload("the yardstick", yardstick, has_first_step=False)


def main(name: str, preset: str, folder: str, settings: str = "{}") -> None:
    """Writes what a workload starts from, and serves it; `settings` of training are JSON."""
    workload, place = WORKLOADS.get(name, YARDSTICK), pathlib.Path(folder)
    if workload.starts_from_export:
        prepare_export(preset, place)
    # Their import is no part of the time to the first step.
    for module in _MODULES if workload.has_first_step else ():
        importlib.import_module(f"nvae_tf.{module}")
    how = workload.settings | json.loads(settings)
    serve(functools.partial(workload.make, preset, workload.batch_sizes[preset], place, **how), workload.has_first_step)


if __name__ == "__main__":
    main(*sys.argv[1:])
