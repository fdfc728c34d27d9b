"""What encoding and the chain of models cost: one core's time, memory, bytes and error.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/encoding.py --parameters 8000000 --bits 6 --members 3

The update is heavy-tailed (Student t, 3 degrees of freedom). Times are CPU seconds, the best of `--repeat`; run it with
OPENBLAS_NUM_THREADS=1 to have them for one thread.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from federation.chain import next_model
from federation.encoding import HISTOGRAM_SHAPE, Layout, SiteHeader, decode_sum, encode, pack_sum, unpack_sum
from federation.manifest import Manifest, Model, TensorSpec
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    TrainingPlan,
)
from federation.vocabulary import Metric

from tests.contract.mean import mean_update

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=8_000_000)
    parser.add_argument("--bits", type=int, default=6)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    measure(options.parameters, options.bits, options.members, options.repeat)


def measure(parameters: int, bits: int, members: int, repeat: int) -> None:
    """Print one line a step."""
    plan = _plan(parameters, bits)
    layout = Layout.of(plan, parameters)
    rng = np.random.default_rng(1)
    delta = rng.standard_t(3, parameters).astype(np.float32)
    delta /= np.linalg.norm(delta)
    header = SiteHeader(100, 12.5, 100, False, np.ones(HISTOGRAM_SHAPE, np.int64))

    words = _timed("encode", repeat, lambda: encode(layout, delta, header, rng))
    one = decode_sum(layout, words, 1)
    total = sum((encode(layout, delta, header, rng) for _ in range(members - 1)), words)
    decoded = _timed("decode the sum", repeat, lambda: decode_sum(layout, total, members))
    data = _timed("pack it for publishing", repeat, lambda: pack_sum(layout, decoded))
    _timed("unpack it", repeat, lambda: unpack_sum(layout, data, members))
    _timed("mean update (inverse rotation)", repeat, lambda: mean_update(layout, decoded))
    model = Model(plan.manifest, np.zeros(parameters, np.float32))
    _timed("next model, FedAdam", repeat, lambda: next_model(plan, model, decoded))

    error = float(np.sum((mean_update(layout, one) - delta) ** 2))
    print(f"{'error of one site (NMSE)':32}{error:10.2e}")
    print(f"{'upload, cohorts up to 64':32}{layout.bytes / parameters:10.3f} bytes a parameter")
    print(f"{f'published sum of {members}':32}{len(data) / parameters:10.3f} bytes a parameter")
    print(f"{'peak memory of all this':32}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:10.0f} MiB")


def _timed(what: str, repeat: int, work: Callable[[], T]) -> T:
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    print(f"{what:32}{min(seconds):10.3f} s")
    return result


def _plan(parameters: int, bits: int) -> TrainingPlan:
    return TrainingPlan(
        run_id=bytes(16),
        name="benchmark",
        purpose="",
        architecture="densenet121-gru",
        manifest=Manifest((TensorSpec("weights", (parameters,)),)),
        initial_model_digest=bytes(32),
        rounds=1,
        inputs=Inputs(256, 40),
        training=LocalTraining(1, 1e-3, 0.0, 0.0, 1, 1),
        server=ServerOptimizer(ServerKind.FEDADAM, 0.01, 0.9, 0.99, 1e-3),
        cohort=CohortBounds(3, 64, 64),
        deadlines=Deadlines(60, 60),
        encoding=Encoding(1.0, bits, 100, bytes(32)),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
    )


if __name__ == "__main__":
    main()
