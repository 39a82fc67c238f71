"""How long one training step takes, beside a PyTorch workload of the same kind of arithmetic.

    python -m benchmarks.train_step --preset=mnist [--steps=15] [--json=FILE]

Our step and the yardstick's (benchmarks/torch_yardstick.py) alternate, each with two threads in a process
of its own. The ratio of their medians is the figure to compare: the published PyTorch code, timed in the
same way, takes 1.37 yardstick steps for `mnist` (batch 16, peak memory 2.6 GB) and 7.9 for `cifar10` (batch
4, 10.0 GB); runs differ by 5%. Let nothing else run meanwhile. The yardstick alone needs PyTorch (`make
torch`); --no-yardstick does without.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
from typing import Any

from benchmarks.interleaved import THREADS, Worker, WorkerEnded
from benchmarks.train_step_worker import BATCH_SIZES

# Steps before the timed ones, in which allocators and caches settle.
WARM_UP_STEPS = 2
# Where the load average is higher at the start, or the slowest step took longer than so many of the fastest,
# something else was running. PyTorch's threads suffer from that many times more than TensorFlow's.
BUSY = 0.7
UNEVEN = 1.5


def measure(preset: str, steps: int, with_yardstick: bool) -> dict[str, Any]:
    """Runs both workloads in turn and returns the figures, in seconds and bytes, as `--json` writes them."""
    machine = describe_machine()
    load = machine["load_average_at_start"]
    if load > BUSY:
        say(f"note: the load average is {load:.1f}: something else is running, or was a moment ago")
    with contextlib.ExitStack() as stack:
        say(f"{preset}: building our model and running its first step")
        workers = {"ours": stack.enter_context(start("benchmarks.train_step_worker", "ours", preset))}
        # Nothing else runs until our first step has ended: the time to it is a figure as well.
        workers["ours"].ask("step")
        if with_yardstick:
            worker = start("benchmarks.yardstick_worker", "yardstick", preset)
            workers["yardstick"] = stack.enter_context(worker)
        for _ in range(WARM_UP_STEPS):
            ask_each(workers, "step")
        rounds = []
        for number in range(1, steps + 1):
            rounds.append({name: answer["seconds"] for name, answer in ask_each(workers, "step").items()})
            times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in rounds[-1].items())
            say(f"step {number} of {steps}: {times}")
        summaries = ask_each(workers, "summary")
    return {"preset": preset, "batch_size": BATCH_SIZES[preset]} | figures(rounds, summaries) | {"machine": machine}


def start(module: str, name: str, preset: str) -> Worker:
    return Worker(name, [sys.executable, "-m", module, preset])


def ask_each(workers: dict[str, Worker], word: str) -> dict[str, dict[str, Any]]:
    return {name: worker.ask(word) for name, worker in workers.items()}


def figures(rounds: list[dict[str, float]], summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns medians and ratios of the timed rounds, with what the workers told about themselves."""
    ours = [times["ours"] for times in rounds]
    yardstick = [times["yardstick"] for times in rounds if "yardstick" in times]
    versions = {"python": platform.python_version()}
    for summary in summaries.values():
        versions |= summary.pop("versions")
    return {
        "ratio": statistics.median(ours) / statistics.median(yardstick) if yardstick else None,
        "ratio_of_fastest": min(ours) / min(yardstick) if yardstick else None,
        "step_seconds": statistics.median(ours),
        "yardstick_seconds": statistics.median(yardstick) if yardstick else None,
        "every_step_seconds": ours,
        "every_yardstick_seconds": yardstick,
        **summaries["ours"],
        "yardstick_peak_memory_bytes": summaries["yardstick"]["peak_memory_bytes"] if yardstick else None,
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_machine() -> dict[str, Any]:
    """Returns what of the machine bears on the figures."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads_used": THREADS,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_at_start": os.getloadavg()[0],
    }


def table(result: dict[str, Any]) -> str:
    """Returns the figures for people."""
    yardstick = result["yardstick_seconds"] is not None
    rows = [("", "ours", *(("yardstick", "ratio") if yardstick else ()))]
    for name, statistic in (("median", statistics.median), ("fastest", min), ("slowest", max)):
        times = [statistic(result["every_step_seconds"])]
        ratio = ""
        if yardstick:
            times.append(statistic(result["every_yardstick_seconds"]))
            ratio = f"{times[0] / times[1]:.3f}"
        rows.append((f"step, {name} of {len(result['every_step_seconds'])}", *(f"{t:.3f} s" for t in times), ratio))
    peaks = [result["peak_memory_bytes"], *([result["yardstick_peak_memory_bytes"]] if yardstick else [])]
    rows += [
        ("peak memory", *(f"{peak / 1e9:.2f} GB" for peak in peaks)),
        ("time to first step", f"{result['first_step_seconds']:.1f} s"),
        ("imports before it", f"{result['import_seconds']:.1f} s"),
        ("graph nodes", f"{result['graph_nodes']:,}"),
        ("  outside functions", f"{result['graph_nodes_at_top']:,}"),
        ("variables", f"{result['variables']:,}"),
        ("  of the optimizer", f"{result['optimizer_variables']:,}"),
        ("trained numbers", f"{result['parameters']:,}"),
    ]
    machine = result["machine"]
    return "\n".join(
        [f"{result['preset']}, batch {result['batch_size']}, {THREADS} threads, {result['date']}"]
        + [f"{row[0]:<22}" + "".join(f"{cell:>13}" for cell in row[1:]).rstrip() for row in rows]
        + [f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_at_start']:.1f}"]
        + [", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    )


def say(line: str) -> None:
    """Tells how far the benchmark is; standard output is for the figures alone."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=sorted(BATCH_SIZES), required=True, help="whose architecture")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each (default: 15)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--no-yardstick", action="store_true", help="our own figures alone, without a ratio")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps={options.steps}: at least 1 step must be timed")
    if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        parser.error(f"--json={options.json}: not a file in an existing folder")
    if not options.no_yardstick and importlib.util.find_spec("torch") is None:
        parser.error(
            "the yardstick needs PyTorch, which is not installed: `make torch` or `pip install torch` adds "
            "it; --no-yardstick prints our own figures alone"
        )
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        result = measure(options.preset, options.steps, not options.no_yardstick)
    except WorkerEnded as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("benchmarks.train_step: interrupted, no figures")
    print(table(result))
    for name in ("every_step_seconds", "every_yardstick_seconds"):
        if result[name] and max(result[name]) > UNEVEN * min(result[name]):
            say(f"note: {name} are uneven; something else was running, so measure again")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
