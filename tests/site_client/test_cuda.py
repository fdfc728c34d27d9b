"""What only a machine with an NVIDIA GPU can show: the same learning there, and memory given back to whoever comes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from federation.plan import LocalTraining
from numpy.typing import NDArray

from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.model.registry import build, weights_of
from site_client.trainer.idle.gpu import Gpus
from site_client.trainer.idle.readings import GpuUse
from site_client.trainer.worker import STOPPED
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.loop import train
from site_client.training.streams import RandomStreams
from tests.site_client.benchmark.test_benchmark import _read, _study
from tests.site_client.test_trainer import Place, data, model, place

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
__all__ = ["data", "model", "place"]  # fixtures
ON_GPU = (("threads = 1", 'threads = 1\ndevice = "cuda"'), ('gpu_others = "ignore"', 'gpu_others = "any"'))
GPU_FREE_S = 5.0  # for a process to write its checkpoint, end, and be gone from the driver's list
TRAINS_S = 120.0  # from a cold start, on a machine that has other things to do
FOREIGNER = "import torch, time; torch.zeros(1, device='cuda'); print('there', flush=True); time.sleep(600)"


def _train(device: Literal["cpu", "cuda"], folder: Path) -> tuple[float, NDArray[np.float32]]:
    """Loss and weights after two epochs of `lite` without dropout and noise, which no two devices draw alike."""
    compute = choose(device, 1, 64)
    assert compute.device.type == device
    net = build("lite", 3).to(compute.device)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    studies: list[StudyRecord] = [_study(number) for number in range(6)]
    loader = Loader(StudyCache(folder / "cache", 1 << 30, 64, 8, _read), Augmentation(noise=0), compute.device)
    plan = LocalTraining(
        epochs=2, learning_rate=1e-3, weight_decay=0.0, proximal_mu=0.01, studies_per_step=2, studies_min=1
    )
    none = Checkpoints(folder / device, CheckpointIdentity("", "", 0, "", "", ""))
    end = train(
        net, plan, studies, loader, RandomStreams(bytes(16), 1, "x"), compute, none, lambda _: None, lambda: False
    )
    return end.loss_sum, _flat(net)


def _flat(net: Network) -> NDArray[np.float32]:
    return np.concatenate([value.ravel() for value in weights_of(net).values()])


def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Path) -> None:
    # In processes of their own: what uses the card here would be a foreigner to the trainer of the tests below.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        cpu_loss, on_cpu = pool.submit(_train, "cpu", tmp_path).result()
        gpu_loss, on_gpu = pool.submit(_train, "cuda", tmp_path).result()
    start = _flat(build("lite", 3))
    # A GPU multiplies in TF32, and Adam turns the sign of a gradient near zero into a whole step.
    assert gpu_loss == pytest.approx(cpu_loss, rel=1e-2)
    assert np.linalg.norm(on_gpu - on_cpu) < 0.3 * np.linalg.norm(on_cpu - start)


@pytest.mark.timeout(300)
def test_a_worker_stopped_on_a_gpu_frees_it_and_goes_on(place: Callable[..., Place]) -> None:
    at = place("site", epochs=20, instead=ON_GPU)
    assert at.stop_at(5, signal.SIGTERM) == STOPPED
    assert Gpus().sample(own=[os.getpid()]) == GpuUse(0, 0)
    update = at.finish()
    assert update.outcome == "trained"
    assert update.loss_sum > 0


@contextmanager
def _foreigner() -> Iterator[None]:
    """Somebody else computes on the GPU."""
    process = subprocess.Popen([sys.executable, "-c", FOREIGNER], stdout=subprocess.PIPE, text=True)
    try:
        # Popen was given a pipe for standard output.
        assert process.stdout is not None
        with process.stdout as lines:
            assert lines.readline() == "there\n"
        yield
    finally:
        process.kill()
        process.wait()


def _until(what: Callable[[], bool], within_s: float) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < within_s, "it did not come to that in time"
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.timeout(300)
def test_training_leaves_the_gpu_to_whoever_comes_and_comes_back_after_them(place: Callable[..., Place]) -> None:
    at = place("site", epochs=100, instead=ON_GPU)
    own = [os.getpid()]

    def trains() -> bool:
        status = at.spool.status()
        return status is not None and status.state == "SITE_TRAINING" and bool(status.step)

    def reasons() -> tuple[str, ...]:
        status = at.spool.status()
        return () if status is None else status.reasons

    command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(at.config)]
    service = subprocess.Popen(command)
    try:
        _until(trains, TRAINS_S)
        assert Gpus().sample(own) == GpuUse(1, 0)  # the worker's memory is on the card
        with _foreigner():
            took_s = _until(lambda: Gpus().sample(own) == GpuUse(1, 0), GPU_FREE_S)
            print(f"the worker had given the card back {took_s:.2f} s after somebody came")
            _until(lambda: "GPU_BUSY" in reasons(), GPU_FREE_S)
            time.sleep(1.0)
            assert Gpus().sample(own) == GpuUse(1, 0)
        _until(trains, TRAINS_S)
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    assert Gpus().sample(own) == GpuUse(0, 0)
