"""Two processes train as one does. Run by torchrun this file is those processes; pytest compares what they wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation.plan import LocalTraining
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from site_client.errors import RanksApart
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.registry import build
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import choose
from site_client.training.data import Loader
from site_client.training.loop import Stopped, train
from site_client.training.ranks import ONE, Ranks, of_torchrun
from site_client.training.state import TrainingPosition
from site_client.training.streams import RandomStreams
from tests.site_client.training.stopping import stop_after as told_to_stop

PLAN = LocalTraining(
    epochs=2, learning_rate=0.003, weight_decay=1e-4, proximal_mu=0.01, studies_per_step=3, studies_min=1
)
STUDIES = 5  # steps of 3 and of 2
WORLD = 2


def _read(series: SeriesRecord) -> Volume:
    random = np.random.default_rng(int(series.content_hash, 16))
    hu = random.integers(-100, 200, (3, 64, 64)).astype(np.int16)
    return Volume(hu, (3.0, 3.0), np.arange(3, dtype=np.float64) * np.float64(5.0), np.full(3, 5.0))


def _study(number: int) -> StudyRecord:
    series = SeriesRecord(SeriesKey(f"series-{number}"), f"{number:064x}", ())
    labels = np.full((3, 6), number % 2, np.int8)
    return StudyRecord(StudyKey(f"s{number}"), PatientKey(f"p{number}"), series, labels, labels[0])


def _train(
    folder: Path, name: str, ranks: Ranks, *, per_step: int = 3, dropout: bool, stop_after: int | None = None
) -> None:
    """`stop_after`: so many questions of the last process; asked anew it goes on. Writes its weights and its place."""
    compute = choose("cpu", 1, 64, ranks)
    loader = Loader(StudyCache(folder / "cache", 1 << 30, 64, 16, _read), Augmentation(), torch.device("cpu"))
    for budget in ([] if stop_after is None else [stop_after]) + [None]:
        net = build("lite", 1)
        for module in net.modules():
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        steps: list[int] = []
        place: TrainingPosition | None = None
        try:
            place = train(
                net,
                replace(PLAN, studies_per_step=per_step),
                [_study(number) for number in range(STUDIES)],
                loader,
                RandomStreams(bytes(16), 1, "north"),
                compute,
                Checkpoints(
                    folder / f"{name}.checkpoints", CheckpointIdentity("train", "00", 1, "base", "data", "config")
                ),
                partial(_record_step, steps),
                told_to_stop(budget if ranks.rank == ranks.world - 1 else None),
            )
        except Stopped:
            files = [file.name for file in (folder / f"{name}.checkpoints").iterdir()]
            (folder / f"{name}-{ranks.rank}.stopped.json").write_text(json.dumps(files))
    assert place is not None
    save_file(
        {key: value.detach().contiguous() for key, value in net.named_parameters()},
        folder / f"{name}-{ranks.rank}.weights",
    )
    facts = {"place": vars(place), "reported": steps}
    (folder / f"{name}-{ranks.rank}.json").write_text(json.dumps(facts))


def _record_step(steps: list[int], at: TrainingPosition) -> None:
    steps.append(at.step)


def _gradients(ranks: Ranks) -> dict[str, Any]:
    """Three parameters: everybody has a gradient of the first, one process of the second, nobody of the third."""
    net = nn.ParameterList([nn.Parameter(torch.zeros(2, 2)) for _ in range(3)])
    net[0].grad = torch.full((2, 2), 1.0 + ranks.rank)
    if ranks.rank == 1:
        net[1].grad = torch.ones(2, 2)
    numbers = ranks.add_up(net, 0.25, 10.0 * ranks.rank)
    return {"numbers": numbers, "gradients": [None if p.grad is None else p.grad.tolist() for p in net]}


def _raised(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def _fail() -> int:
    raise FileNotFoundError


def _program(folder: Path) -> None:
    with of_torchrun("cpu") as ranks:
        _train(folder, "plain", ranks, dropout=False)
        _train(folder, "single", ranks, per_step=1, dropout=False)
        _train(folder, "whole", ranks, dropout=True)
        _train(folder, "pieces", ranks, dropout=True, stop_after=1)
        facts = {
            **_gradients(ranks),
            "first": ranks.first(lambda: f"of {ranks.rank}"),
            "failed": _raised(lambda: ranks.first(_fail)),
            "apart": _raised(lambda: ranks.meet(7, ranks.rank)),
            "together": _raised(lambda: ranks.meet(7, -3)),
        }
        (folder / f"facts-{ranks.rank}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, and beside it what one did."""
    made = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD), __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(made)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    _train(made, "plain-alone", ONE, dropout=False)
    _train(made, "single-alone", ONE, per_step=1, dropout=False)
    return made


def _weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.weights")


def _facts(folder: Path, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return facts


@pytest.mark.parametrize("name", ["plain", "single", "whole", "pieces"])
def test_all_end_with_the_same_bits_and_one_reports(folder: Path, name: str) -> None:
    one, other = (_weights(folder, f"{name}-{rank}") for rank in range(WORLD))
    assert all(torch.equal(one[key], other[key]) for key in one)
    facts = [_facts(folder, f"{name}-{rank}") for rank in range(WORLD)]
    assert facts[0]["place"] == facts[1]["place"]
    assert facts[0]["reported"]
    assert facts[1]["reported"] == []


@pytest.mark.parametrize("name", ["plain", "single"])  # in the second the other process never has anything to do
def test_two_processes_train_as_one_does_but_for_rounding(folder: Path, name: str) -> None:
    alone, together = _weights(folder, f"{name}-alone-0"), _weights(folder, f"{name}-0")
    start = build("lite", 1).state_dict()
    moved = sum(float((alone[key] - start[key]).norm() ** 2) for key in alone) ** 0.5
    apart = sum(float((alone[key] - together[key]).norm() ** 2) for key in alone) ** 0.5
    size = sum(float(value.norm() ** 2) for value in alone.values()) ** 0.5
    assert apart <= 1e-5 * size
    assert moved > 1000 * apart
    places = [_facts(folder, f"{name}-{which}")["place"] for which in ("alone-0", "0")]
    assert places[1] == pytest.approx(places[0], rel=1e-5)


def test_if_one_is_told_to_stop_all_do_with_one_checkpoint_and_go_on_to_the_same_bits(folder: Path) -> None:
    files = [json.loads((folder / f"pieces-{rank}.stopped.json").read_text()) for rank in range(WORLD)]
    assert files[0] == files[1]
    assert len(files[0]) == 1
    whole, pieces = _weights(folder, "whole-0"), _weights(folder, "pieces-0")
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)
    assert _facts(folder, "whole-0")["place"] == _facts(folder, "pieces-0")["place"]


def test_gradients_that_some_lack_count_as_zero_and_those_that_all_lack_stay_away(folder: Path) -> None:
    for rank in range(WORLD):
        facts = _facts(folder, f"facts-{rank}")
        assert facts["gradients"] == [[[3.0, 3.0], [3.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], None]
        assert facts["numbers"] == [0.5, 10.0]


def test_what_the_first_makes_all_have_and_its_failure_ends_them_all(folder: Path) -> None:
    facts = [_facts(folder, f"facts-{rank}") for rank in range(WORLD)]
    assert [fact["first"] for fact in facts] == ["of 0", "of 0"]
    assert [fact["failed"] for fact in facts] == ["FileNotFoundError", RanksApart.__name__]


def test_processes_at_different_places_are_told_so(folder: Path) -> None:
    for rank in range(WORLD):
        facts = _facts(folder, f"facts-{rank}")
        assert (facts["apart"], facts["together"]) == (RanksApart.__name__, "nothing")


def test_a_process_alone_gives_back_what_it_got() -> None:
    net = nn.Linear(2, 2)
    assert ONE.add_up(net, 1.5, 0) == (1.5, 0)
    assert net.weight.grad is None
    assert [*ONE.share(range(5))] == [0, 1, 2, 3, 4]
    assert ONE.first(lambda: 3) == 3
    ONE.meet(1, 2)


if __name__ == "__main__":
    _program(Path(sys.argv[1]))
    os._exit(0)  # gloo's threads have been seen to abort an ordinary exit, after all was done
