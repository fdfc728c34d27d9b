"""The models that the rounds of a run have led to here, so that an aggregator cannot show this site another history.

    <state>/agent/models/lineage.json    by run, the newest two models with the rounds that led to them

A newcomer computes the newest model from the plan's first one, and has no witness for the sums in between. A site
that has already followed sums of the run knows better: a chain that it is shown leads through the model that it has
followed the run to, or begins there. A kept model of another run is no model of this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from federation.plan import TrainingPlan
from federation.v1 import rounds_pb2

from site_client.errors import StepRefused
from site_client.files import replace_file
from site_client.records import RoundNumber, RunHex
from site_client.typed_json import Digest, encode_state, read_state

_ADVICE: Final = (
    "put the last backup of it back; without one, move it and history.json away, and models are fetched whole"
)
_KEPT: Final = 2  # as many as there are models


@dataclass(frozen=True)
class Ancestor:
    """A model, the round that led to it, and the model that it is a candidate against; None if it is none."""

    round: RoundNumber
    model_digest: Digest
    predecessor_digest: Digest | None = None


class Lineage:
    """The file. A folder in which no sum was followed yet has none, nor has one that version 0.1.0 wrote."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lineage.json"

    def record(self, plan: TrainingPlan, number: int, model_digest: bytes, predecessor: bytes | None = None) -> None:
        """Record, before the model is kept, that a round of the plan led to it: a crash leaves the one before."""
        runs, run = self._read() or {}, plan.run_id.hex()
        reached = Ancestor(number, Digest(model_digest), None if predecessor is None else Digest(predecessor))
        if reached not in runs.get(run, []):
            runs[run] = [*runs.get(run, []), reached][-_KEPT:]
            replace_file(self._path, encode_state(runs))

    def go_back(self, plan: TrainingPlan, number: int, model_digest: bytes) -> None:
        """Record that a refusal or a rollback after a round led back to a model; it may have been the newest before."""
        runs, run = self._read() or {}, plan.run_id.hex()
        reached = Ancestor(number, Digest(model_digest))
        runs[run] = [*(known for known in runs.get(run, []) if known != reached), reached][-_KEPT:]
        replace_file(self._path, encode_state(runs))

    def holds(self, plan: TrainingPlan, model_digest: bytes) -> bool:
        """Whether rounds of this run have led here to a model, or it is the plan's first one and none has led on."""
        runs = self._read()
        if runs is None:
            return True
        reached = runs.get(plan.run_id.hex())
        if reached is None:
            return model_digest == plan.initial_model_digest
        return model_digest in [ancestor.model_digest for ancestor in reached]

    def newest(self, plan: TrainingPlan) -> Ancestor | None:
        """Return the model that the last round known here has led to; None before the first."""
        reached = (self._read() or {}).get(plan.run_id.hex())
        return reached[-1] if reached else None

    def check_chain(self, plan: TrainingPlan, base: bytes, chain: Sequence[rounds_pb2.PublishedSum]) -> None:
        """Refuse sums from `base` on that pass by the newest model that this run has led to here.

        Raises:
            StepRefused: They do.
        """
        reached = (self._read() or {}).get(plan.run_id.hex())
        if not reached:
            return
        begins_at = [ancestor.round for ancestor in reached if ancestor.model_digest == base]
        goes_on = begins_at and chain[0].round > begins_at[-1]
        links = [(link.round, link.model_digest) for link in chain]
        if not goes_on and (reached[-1].round, reached[-1].model_digest) not in links:
            raise StepRefused(
                f"the chain of sums passes by the model that round {reached[-1].round} has led to here; an aggregator "
                "that shows two histories of a run is wrong in one of them: ask the coordinator"
            )

    def _read(self) -> dict[RunHex, list[Ancestor]] | None:
        return read_state(dict[RunHex, list[Ancestor]], self._path, _ADVICE)
