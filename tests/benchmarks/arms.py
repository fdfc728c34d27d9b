"""The cost of each arm on this machine: training slices a second, inference per slice, memory. Printed as JSON.

    python tests/benchmarks/arms.py [--device cuda] [--arms lite densenet121] [--size-px 256] [--slices 32] [--slab 8]

Only the network, its loss and AdamW run, on random pixels that are on the device before. A step reads a slab of each of
its studies, in as many passes as the loop would make; inference reads a whole study. On a GPU `separate_times_slower`
is the same step with each study in a pass of its own, `fp32_times_slower` without bf16 and `plain_times_slower` without
bf16 and channels_last. The figures are medians of the repeats.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from site_client.inference.scoring import clock_of
from site_client.model.network import CHANNELS, GEOMETRY, Network
from site_client.model.registry import ARCHITECTURES, build
from site_client.training.compute import Compute, choose
from site_client.training.data import Sample, passes
from site_client.training.loss import training_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--slab", type=int, default=8)
    parser.add_argument("--studies", type=int, default=4, help="Of a step.")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    compute = choose(options.device, options.threads, options.size_px)
    costs = {arm: measure(arm, compute, options) for arm in options.arms}
    print(json.dumps({"machine": machine(compute), "compute": compute.name, **vars(options), "arms": costs}, indent=1))


def machine(compute: Compute) -> str:
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.machine()))


def measure(arm: str, compute: Compute, options: argparse.Namespace) -> dict[str, float]:
    net = compute.place(build(arm, 0))
    whole = sample_of(options.slices, options.size_px, compute.device)
    slab = sample_of(options.slab, options.size_px, compute.device) if net.has_slice_outputs else whole
    batch = [slab] * options.studies
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = clock_of(compute)
    step_s = median_s(stepping(net, batch, compute), clock, options.repeats)
    peak = torch.cuda.max_memory_allocated() / 2**20 if compute.device.type == "cuda" else 0.0
    inference_s = median_s(lambda: infer(net, whole, compute), clock, options.repeats)
    costs = {
        "parameters": sum(value.numel() for value in net.parameters()),
        "training_slices_per_s": len(batch) * slab.mask.shape[1] / step_s,
        "inference_ms_per_slice": 1000 * inference_s / options.slices,
    }
    if compute.device.type == "cuda":
        fp32 = replace(compute, bf16=False)
        plain = compute.place(build(arm, 0))
        for parameter in plain.parameters():
            parameter.data = parameter.data.contiguous()
        others = {
            "separate": stepping(net, batch, replace(compute, slices_a_pass=1)),
            "fp32": stepping(net, batch, fp32),
            "plain": stepping(plain, batch, fp32),
        }
        costs["peak_mib"] = peak
        for name, step in others.items():
            costs[f"{name}_times_slower"] = median_s(step, clock, options.repeats) / step_s
    return {name: round(value, 3) for name, value in costs.items()}


def sample_of(slices: int, size_px: int, device: torch.device) -> Sample:
    random = torch.Generator().manual_seed(1)
    x = torch.rand(1, slices, CHANNELS, size_px, size_px, generator=random).mul(2).sub(1)
    labels = torch.randint(0, 2, (1, slices, 6), generator=random).float()
    return Sample(
        x.to(device),
        torch.ones(1, slices, dtype=torch.bool, device=device),
        torch.zeros(1, slices, GEOMETRY, device=device),
        labels.to(device),
        labels.amax(dim=1).to(device),
        torch.ones(1, dtype=torch.bool, device=device),
    )


def stepping(net: Network, batch: list[Sample], compute: Compute) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> None:
        net.train()
        optimizer.zero_grad()
        for sample in passes(batch, compute.slices_a_pass):
            with compute.autocast():
                output = net(sample.x, sample.mask, sample.geometry)
            torch.autograd.backward(training_loss(output, sample).sum())
        optimizer.step()

    return step


def infer(net: Network, sample: Sample, compute: Compute) -> None:
    net.eval()
    with torch.inference_mode(), compute.autocast():
        net(sample.x, sample.mask, sample.geometry)


def median_s(work: Callable[[], None], clock: Callable[[], float], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 2):  # the first two also warm up
        start = clock()
        work()
        seconds.append(clock() - start)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
