"""The sums that this site has helped to recover, by the model they are on.

    <state>/agent/rounds/
      sums.json       the newest KEPT of them
      left_bases.bin  a checksum, and digests of the models of all older ones, 32 bytes each; on these this site takes
                      part in nothing

Two sums on one model over almost the same members differ by what few of them said. So after a reveal this site works on
that model again only when the round's end was shown to it: the sum, or the evidence why there is none. And it confirms
no second set on that model that differs from an earlier one by some members, but by fewer than the least cohort. Where
the earlier sum led to another model it confirms no other set at all, nor in the same run where it was an evaluation: a
run evaluates its last model until there is one, and three more sums could isolate one hospital.

A member that is proven to have dealt shares of no secret does not count: it told the aggregator its part, or can.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from federation.limits import COHORT_MAX
from federation.two_sums import told_apart
from msgspec import Meta

from site_client.agent.rounds.journal import CurrentRound
from site_client.errors import StateRefused, StateUnreadable, StepRefused
from site_client.files import replace_file
from site_client.records import RoundNumber, RunId
from site_client.typed_json import Digest, encode_state, read_state
from site_client.untrusted_files import read_regular

# Of several runs; a base model is left behind after a round or two. `read_state` reads so many of COHORT_MAX names.
KEPT: Final = 24
_CHECKED: Final = b"sha256 "  # begins a file whose digests have a checksum, the next 32 bytes
_HEADER_BYTES: Final = len(_CHECKED) + Digest.LENGTH
_LEFT_BYTES_MAX: Final = 64 << 20  # of two million models
_ADVICE: Final = "put the state folder of the last backup back, then restart the agent"


@dataclass(frozen=True)
class RevealedSum:
    """One sum.

    Attributes:
        run_id: Of the round.
        number: Of the round.
        base_model_digest: Of the model it is on.
        members: U3, sorted.
        shown: Whether the sum, or the evidence why there is none, was shown to this site and verified.
        led_on: Whether this site followed the sum to another model.
        evaluated: Whether it was published as the evaluation of the run's last model.
        exposed: Members whose guilt this site has verified.
    """

    run_id: RunId
    number: RoundNumber
    base_model_digest: Digest
    members: Annotated[tuple[str, ...], Meta(max_length=COHORT_MAX)]
    shown: bool = False
    led_on: bool = False
    evaluated: bool = False
    exposed: Annotated[tuple[str, ...], Meta(max_length=COHORT_MAX)] = ()

    def is_of(self, current: CurrentRound) -> bool:
        """Whether it is the sum of this round."""
        return (self.run_id, self.number) == (current.run_id, current.number)


class RevealedSums:
    """The file; read anew by each call, which is a few times a round."""

    def __init__(self, folder: Path) -> None:
        self._path, self._left_bases = folder / "sums.json", folder / "left_bases.bin"

    def record(self, current: CurrentRound, members: Collection[str]) -> None:
        """Record that this site is about to reveal for the set `members`, as its member of the cohort has checked it.

        The set of the step, and not of the journal: a crash while it confirmed may have left the journal without one.
        """
        others = [revealed for revealed in self._read() if not revealed.is_of(current)]
        revealed = RevealedSum(current.run_id, current.number, current.base_model_digest, tuple(sorted(members)))
        self._write([*others, revealed])

    def settle(self, current: CurrentRound, *, published: bool = False, exposed: Collection[str] = ()) -> None:
        """Record that the round's end was shown and verified, and whether its sum was published."""
        known = self._read()
        led_on, evaluated = published and not current.evaluation_only, published and current.evaluation_only
        settled = [
            replace(revealed, shown=True, led_on=led_on, evaluated=evaluated, exposed=tuple(sorted(exposed)))
            if revealed.is_of(current)
            else revealed
            for revealed in known
        ]
        if settled != known:
            self._write(settled)

    def check_offer(self, base_model_digest: bytes) -> None:
        """Refuse a model with a sum whose end was not shown, or whose record was dropped.

        Raises:
            StepRefused: There is one.
        """
        if base_model_digest in self._bases_left():
            raise StepRefused(
                "this site helped with a sum on that model long ago, and no longer knows of which members; it takes "
                "part in no other round on it"
            )
        for revealed in self._on(base_model_digest):
            if not revealed.shown:
                raise StepRefused(
                    f"this site revealed in round {revealed.number} and was shown neither its sum nor why there is "
                    "none; it takes part in no other round on that model. Ask the coordinator for a run from another"
                )

    def check_set(self, current: CurrentRound, members: Collection[str], minimum: int, known: Collection[str]) -> None:
        """Refuse a set whose sum, beside an earlier one on the same model, would say too much about few.

        A model that was left behind is taken up again after a restored backup only. Then the set is the very same:
        with other sets, a third sum could isolate one hospital though each two differ by many.

        Raises:
            StepRefused: It differs from one that led to another model, or that evaluated it in this run; or from
                another one by some members, but by fewer than `minimum` of the `known` ones. Hospitals unknown here may
                all be one party, which can subtract its own parts.
        """
        for revealed in self._on(current.base_model_digest):
            later, earlier = set(members) - set(revealed.exposed), set(revealed.members) - set(revealed.exposed)
            differing = later ^ earlier
            if differing and revealed.led_on:
                raise StepRefused(
                    f"round {revealed.number} led from the same model to another one, with other members; this site "
                    "confirms only the very same members on it again"
                )
            if differing and revealed.evaluated and revealed.run_id == current.run_id:
                raise StepRefused(
                    f"round {revealed.number} has evaluated the last model of this run, with other members; this site "
                    "confirms no other evaluation of it"
                )
            counted = told_apart(later, earlier, set(known))
            if differing and counted < minimum:
                raise StepRefused(
                    f"the sum would differ by {counted} known members from the sum of round {revealed.number} on "
                    f"the same model, at least {minimum} are needed; this site does not confirm it"
                )

    def _on(self, base_model_digest: bytes) -> list[RevealedSum]:
        return [revealed for revealed in self._read() if revealed.base_model_digest == base_model_digest]

    def _read(self) -> list[RevealedSum]:
        return read_state(list[RevealedSum], self._path, _ADVICE) or []

    def _bases_left(self) -> set[bytes]:
        size = Digest.LENGTH
        try:
            data = read_regular(self._left_bases, _LEFT_BYTES_MAX)
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StateUnreadable.of(self._left_bases.name, error) from error
        except ValueError as error:
            raise self._left_bases_damaged(str(error)) from None
        if data.startswith(_CHECKED):  # else of version 0.1.0
            checksum, data = data[len(_CHECKED) : _HEADER_BYTES], data[_HEADER_BYTES:]
            if checksum != hashlib.sha256(data).digest():
                raise self._left_bases_damaged("its checksum is not that of its digests")
        bases = [data[start : start + size] for start in range(0, len(data), size)]
        # As `_write` leaves them: a file that lost a part of itself would take bars away.
        if not bases or len(data) % size or bases != sorted(set(bases)):
            raise self._left_bases_damaged("it is no sorted list of digests")
        return set(bases)

    def _left_bases_damaged(self, why: str) -> StateRefused:
        return StateRefused(f"{self._left_bases.name} in the state folder is damaged ({why}); {_ADVICE}")

    def _write(self, sums: list[RevealedSum]) -> None:
        dropped = {bytes(revealed.base_model_digest) for revealed in sums[:-KEPT]}
        # Before the records go: a crash in between bars them once more.
        if not dropped <= (left := self._bases_left()):
            digests = b"".join(sorted(left | dropped))
            replace_file(self._left_bases, _CHECKED + hashlib.sha256(digests).digest() + digests)
        replace_file(self._path, encode_state(sums[-KEPT:]))
