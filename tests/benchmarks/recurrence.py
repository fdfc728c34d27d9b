"""The cost of a training step of each recurrence, as JSON: milliseconds, and the factor to a step of the GRU.

python tests/benchmarks/recurrence.py [--slices 40 320] [--repeats 5]

One study, the sizes of the full architectures, one thread, least processor times of the repeats. At the lengths of a CT
the recurrence is a small part of training: `share_of_a_slice` is its cost a slice over that of the backbone.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import get_args

import torch

from site_client.model.network import CHANNELS, GEOMETRY, SequenceNet
from site_client.model.recurrence import Recurrence, RecurrenceName
from site_client.model.registry import build

WIDTH, HIDDEN, LAYERS = 256, 128, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, nargs="+", default=[40, 320])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone_ms = best_ms(backbone_step(), 2)
    costs = {}
    for slices in arguments.slices:
        steps = {name: best_ms(step(name, slices), arguments.repeats) for name in get_args(RecurrenceName)}
        costs[slices] = {
            name: {
                "ms": round(ms, 2),
                "times_faster_than_gru": round(steps["gru"] / ms, 2),
                "share_of_a_slice": round(ms / slices / backbone_ms, 4),
            }
            for name, ms in steps.items()
        }
    print(json.dumps({"backbone_ms_a_slice_of_256_px": round(backbone_ms, 1), "slices": costs}, indent=1))


def step(name: RecurrenceName, slices: int) -> Callable[[], object]:
    torch.manual_seed(0)
    recurrence = Recurrence(name, 3 * WIDTH + GEOMETRY, HIDDEN, LAYERS)
    x = torch.randn(1, slices, 3 * WIDTH + GEOMETRY, requires_grad=True)
    mask = torch.ones(1, slices, dtype=torch.bool)
    return lambda: recurrence(x, mask).square().mean().backward()


def backbone_step() -> Callable[[], object]:
    net = build("densenet121-gru", 0)
    # the registry has a SequenceNet under this name
    assert isinstance(net, SequenceNet)
    x = torch.randn(1, CHANNELS, 256, 256).contiguous(memory_format=torch.channels_last)
    return lambda: net.backbone(x).square().mean().backward()


def best_ms(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return 1000 * min(seconds)


if __name__ == "__main__":
    main()
