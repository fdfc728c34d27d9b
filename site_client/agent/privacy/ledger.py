"""The privacy ledger, <state>/agent/privacy.jsonl: a line for every sum that this hospital's patients may be in.

A charge is on disk before the first masked byte of its round leaves. It is made once a run, round and kind, whatever
attempts and crashes follow, and is never given back: the aggregator may have the bytes. The lines have the form of
`chained_file`, with the facts of `Charge`. The ledger never leaves this site.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation import accounting
from federation.accounting import Price
from federation.plan import TrainingPlan
from msgspec import Meta

from site_client.agent.chained_file import GENESIS, Chain, ChainedFile, Signature, line_hash
from site_client.agent.privacy.costs import CostKind, PrivacyCost, costs_of_round, epsilon_of
from site_client.config import SiteSettings
from site_client.records import RoundNumber, RunId
from site_client.typed_json import LOCAL, Digest, decode

_log = structlog.get_logger()
FILE: Final = "privacy.jsonl"
CHAIN: Final = Chain("privacy ledger", "hemofed privacy ledger v1")
_Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class Charge:
    """One line.

    Attributes:
        plan: Digest of the run's plan.
        cost: The numbers from which the price follows.
        validation_fraction: Of training.validation_fraction, by which patients were split.
    """

    seq: Annotated[int, Meta(ge=1)]
    utc: Annotated[datetime, Meta(tz=True)]
    run: RunId
    round: RoundNumber
    plan: Digest
    cost: PrivacyCost
    validation_fraction: _Fraction
    key: Digest
    prev_hash: Digest
    sig: Signature
    hash: str = field(default="", metadata=LOCAL)  # of the line, in hex; the reader fills it in


@dataclass(frozen=True)
class SpentPrivacy:
    """All charges so far, and the fraction by which patients are split now."""

    charges: tuple[Charge, ...]
    validation_fraction: float

    @property
    def is_unbounded(self) -> bool:
        """Whether these patients have taken part in a run without noise."""
        return any(charge.cost.kind is CostKind.UNBOUNDED for charge in self.charges)

    @property
    def has_moved(self) -> bool:
        """Whether patients may have changed sides between training and validation since the first charge."""
        return len({self.validation_fraction, *(charge.validation_fraction for charge in self.charges)}) > 1

    def epsilon(self, delta: float, kinds: Collection[CostKind] = tuple(CostKind), run: bytes | None = None) -> float:
        """Return the epsilon that was spent, of some kinds of cost and of one run where they are given."""
        return epsilon_of(
            (
                (charge.cost, charge.validation_fraction)
                for charge in self.charges
                if charge.cost.kind in kinds and run in (None, charge.run)
            ),
            delta,
        )

    def epsilon_with(self, plan: TrainingPlan, delta: float, begin: int = 1) -> float:
        """Return the epsilon after all rounds of a plan from `begin` on, beside what was spent."""
        charged = [(charge.cost, charge.validation_fraction) for charge in self.charges]
        return epsilon_of([*charged, *self._ahead(plan, begin)], delta)

    def validation_price_with(self, plan: TrainingPlan, begin: int) -> Price:
        """Return the price of a run's evaluations: those charged, and those of its rounds from `begin` on."""
        charged = [charge.cost for charge in self.charges if charge.run == plan.run_id]
        costs = [*charged, *(cost for cost, _ in self._ahead(plan, begin))]
        return accounting.add(cost.price for cost in costs if cost.kind is CostKind.VALIDATION)

    def holds(self, run: bytes, number: int, kind: CostKind) -> bool:
        """Whether this cost of a round was charged. A run without a bound is charged once."""
        return (run, 0 if kind is CostKind.UNBOUNDED else number, kind) in self._charged

    def _ahead(self, plan: TrainingPlan, begin: int) -> list[tuple[PrivacyCost, float]]:
        return [
            (cost, self.validation_fraction)
            for number in range(begin, max(plan.rounds + 1, begin) + 1)
            for cost in costs_of_round(plan, number)
            if not self.holds(plan.run_id, number, cost.kind)
        ]

    @cached_property
    def _charged(self) -> frozenset[tuple[bytes, int, CostKind]]:
        return frozenset(
            (charge.run, 0 if charge.cost.kind is CostKind.UNBOUNDED else charge.round, charge.cost.kind)
            for charge in self.charges
        )

    def last_round(self, run: bytes) -> int:
        """Return the number of the last round that a run was charged for; 0 before the first."""
        return max((charge.round for charge in self.charges if charge.run == run), default=0)


class PrivacyLedger:
    """The ledger of this site. It is open only while a charge is written, so no two processes wait for each other."""

    def __init__(
        self, folder: Path, signer: Ed25519PrivateKey, clock: Callable[[], datetime], validation_fraction: float
    ) -> None:
        """Take the parts of a charge.

        Args:
            folder: The agent's state folder.
            signer: The site's signing key.
            clock: Aware time.
            validation_fraction: By which the trainer splits patients.
        """
        self._path, self._signer, self._clock = folder / FILE, signer, clock
        self._validation_fraction = validation_fraction
        self._read: tuple[tuple[int, int], SpentPrivacy] | None = None  # length and time of the file as it was read

    def charge(self, plan: TrainingPlan, number: int) -> None:
        """Charge all costs of a round that are not charged yet. They are on disk when this returns.

        Raises:
            LedgerBroken: A line does not verify, so that nothing can be added to what was spent.
            OSError: The disk is full, and nothing was charged.
        """
        spending = self.spending()
        costs = [cost for cost in costs_of_round(plan, number) if not spending.holds(plan.run_id, number, cost.kind)]
        if not costs:
            return
        # A host that has joined anew signs with another key than the lines before: `privacy verify` names both.
        with closing(ChainedFile(self._path, CHAIN, self._signer, self._clock, joining=True)) as file:
            if file.torn:
                _log.warning("privacy ledger repaired", cut_bytes=len(file.torn), entry=file.entries)
            for cost in costs:
                facts = {"run": plan.run_id.hex(), "round": number, "plan": plan.digest.hex(), "cost": asdict(cost)}
                file.append(facts | {"validation_fraction": self._validation_fraction})

    def spending(self) -> SpentPrivacy:
        """Return all that was charged.

        Raises:
            LedgerBroken: A line does not verify.
        """
        stamp = self._stamp()
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, SpentPrivacy(tuple(read(self._path)), self._validation_fraction)
        return self._read[1]

    def mark(self) -> tuple[int, str]:
        """Return the number of charges and the hash of the newest, in hex.

        Raises:
            LedgerBroken: A line does not verify.
        """
        charges = self.spending().charges
        return len(charges), charges[-1].hash if charges else GENESIS

    def had(self, entries: int, head: str) -> bool:
        """Whether this ledger had the head `head` (hex) when it had so many charges; so has every ledger at none.

        Raises:
            LedgerBroken: A line does not verify.
        """
        charges = self.spending().charges
        return entries == 0 or (entries <= len(charges) and charges[entries - 1].hash == head)

    def _stamp(self) -> tuple[int, int]:
        if not self._path.exists():
            return 0, 0
        status = self._path.stat()
        return status.st_size, status.st_mtime_ns


def spending_of(settings: SiteSettings) -> SpentPrivacy:
    """Return all that a site was charged.

    Raises:
        LedgerBroken: A line does not verify.
    """
    return SpentPrivacy(tuple(read(settings.folders.agent / FILE)), settings.training.validation_fraction)


def read(path: Path) -> Iterator[Charge]:
    """Yield every charge, oldest first, each with its signature verified.

    Raises:
        LedgerBroken: A line does not verify; the error names the first.
    """
    for seq, (record, line) in enumerate(CHAIN.lines(path), 1):
        # Every signature: a year of rounds has hundreds of lines, and an auditor learns which one was changed first.
        if not CHAIN.is_authentic(record):
            raise CHAIN.broken(seq)
        try:
            charge = decode(Charge, line, whole=True)
        except ValueError:
            raise CHAIN.broken(seq) from None
        yield replace(charge, hash=line_hash(line))
