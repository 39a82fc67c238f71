"""The yardstick's process in `benchmarks.train_step`: one preset of the PyTorch workload, step by step."""

import sys

import torch

from benchmarks import interleaved, torch_yardstick


def main(preset: str) -> None:
    torch.set_num_threads(interleaved.THREADS)
    step = torch_yardstick.make_step(preset)
    interleaved.serve(step, summary=lambda: {"versions": {"torch": torch.__version__}})


if __name__ == "__main__":
    main(sys.argv[1])
