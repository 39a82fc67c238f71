"""A yardstick, not a model: a small PyTorch workload.

Its arithmetic resembles one training step of a deep hierarchical VAE on a CPU (inverted-residual cells with depthwise
5x5, batch norm, swish and squeeze-excite; forward, backward and a plain SGD update). It learns nothing.

Why: seconds differ between machines, library builds and hours, but the RATIO "our step / yardstick step", measured
interleaved in one run with the same number of threads and nothing else running, can be compared with the ratio that was
recorded in the same way for other code.

    step = make_step("mnist")
    step()  # runs one step and returns its seconds
"""

import time

import torch
from torch import nn
from torch.nn import functional as F

# Batch, input height = width, then (channels, how many cells) per stage; a stride-2 cell joins two stages. About 1 s a
# step with 2 threads on the 2-core machine they were set on.
PRESETS = {
    "mnist": dict(batch=16, size=16, stages=((64, 18), (128, 24))),
    "cifar10": dict(batch=4, size=16, stages=((256, 24),)),
}


class SqueezeExcite(nn.Module):
    """x -> x * a gate per channel, of the channel means."""

    def __init__(self, width):
        super().__init__()
        hidden = max(width // 16, 4)
        self.reduce = nn.Linear(width, hidden)
        self.expand = nn.Linear(hidden, width)

    def forward(self, x):
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class InvertedCell(nn.Module):
    """x -> skip(x) + 0.1 * SE(BN, 1x1 to 6C, BN, swish, depthwise 5x5, BN, swish, 1x1, BN)."""

    def __init__(self, width_in, width_out, stride=1):
        super().__init__()
        hidden = 6 * width_in
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 5, stride=stride, padding=2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, width_out, 1, bias=False),
            nn.BatchNorm2d(width_out),
            SqueezeExcite(width_out),
        )
        same = stride == 1 and width_in == width_out
        self.skip = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1, stride=stride)

    def forward(self, x):
        return self.skip(x) + 0.1 * self.branch(x)


def make_step(preset, seed=0):
    """Builds the workload; returns a function that runs one step and gives its wall seconds."""
    p = PRESETS[preset]
    torch.manual_seed(seed)
    cells, width = [], p["stages"][0][0]
    for channels, count in p["stages"]:
        if channels != width:
            cells.append(InvertedCell(width, channels, stride=2))
            width = channels
        cells.extend(InvertedCell(width, width) for _ in range(count))
    net = nn.Sequential(*cells).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    x = torch.randn(p["batch"], p["stages"][0][0], p["size"], p["size"])

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        net(x).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - start

    return step
