"""One attempt played in one process: real members, a plain aggregator, and a chosen moment of silence for each member.

Used by the tests of secure aggregation and by its benchmarks. Everything is derived from a seed, so a failing pattern
can be played again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.secagg import (
    Advertisement,
    Cohort,
    Context,
    DealtShares,
    Member,
    RevealedShare,
    Words,
    context,
    recover_masks,
    split,
    unmask,
    verify_advertisement,
    verify_answer,
    verify_claim,
    verify_confirmation,
)

BLOB_DIGEST = b"\x0d" * 32
Dealt = dict[str, dict[str, DealtShares]]
Answers = Mapping[str, Mapping[str, RevealedShare]]


class Silent(IntEnum):
    """The first phase in which a member says nothing any more."""

    SHARES = 1
    UPLOAD = 2
    CONFIRM = 3
    REVEAL = 4
    NEVER = 5


def a_context(**changes: object) -> Context:
    """ctx of some attempt, with what the test is about changed."""
    inputs: dict[str, Any] = {
        "plan_digest": b"\x01" * 32,
        "base_digest": b"\x02" * 32,
        "run_id": b"run",
        "round_number": 1,
        "attempt": 1,
        "roster_epoch": 1,
    }
    return context(**(inputs | changes))


@dataclass
class Session:
    """Members in one attempt.

    size: members. length: words a member. seed: of everything. ctx: of the attempt.
    """

    size: int
    length: int = 5
    seed: int = 0
    ctx: Context = field(default_factory=a_context)
    complaints: dict[str, set[str]] = field(default_factory=dict)  # by dealer: the members that complained
    members: dict[str, Member] = field(init=False)
    words: dict[str, Words] = field(init=False)

    def __post_init__(self) -> None:
        self._draw = np.random.default_rng(self.seed)
        self.sites = [f"site-{number:04d}" for number in range(self.size)]
        self.signing_keys = {site: Ed25519PrivateKey.from_private_bytes(self._draw.bytes(32)) for site in self.sites}
        self.roster = {site: key.public_key().public_bytes_raw() for site, key in self.signing_keys.items()}
        self.members = {
            site: Member.begin(self.ctx, site, self.signing_keys[site], self._draw.bytes) for site in self.sites
        }
        self.words = {
            site: self._draw.integers(0, 1 << 64, self.length, dtype=np.uint64, endpoint=False) for site in self.sites
        }

    @property
    def advertisements(self) -> dict[str, Advertisement]:
        return {site: member.advertisement for site, member in self.members.items()}

    @property
    def cohort(self) -> Cohort:
        (only,) = split(self.ctx, self.advertisements)
        return only

    def share_all(self, sites: list[str] | None = None) -> Dealt:
        """Dealt shares by dealer, then by member."""
        advertisements = self.advertisements
        return {site: self.members[site].share(advertisements, self.roster) for site in sites or self.sites}

    def mask_all(self, dealt: Mapping[str, Mapping[str, DealtShares]], sites: list[str]) -> dict[str, Words]:
        """Masked words of `sites`, each of whom received the shares of everybody in `dealt`."""
        uploads = {}
        for site in sites:
            shares = addressed_to(site, dealt)
            for dealer in self.members[site].receive(shares):
                self.complaints.setdefault(dealer, set()).add(site)
            uploads[site] = self.members[site].mask(self.words[site], shares)
            self.members[site].claim(BLOB_DIGEST)
        return uploads

    def confirm_all(self, sites: list[str], uploaded: list[str]) -> dict[str, bytes]:
        return {site: self.members[site].confirm(uploaded) for site in sites}

    def plain_sum(self, sites: list[str]) -> Words:
        total: Words = np.add.reduce([self.words[site] for site in sites])
        return total

    def play(self, silent: Mapping[str, Silent] | None = None) -> "Played":
        """The whole attempt, with the aggregator verifying whatever it can. Raises what a member or it refuses."""
        moment = {site: Silent.NEVER for site in self.sites} | dict(silent or {})
        for advertisement in self.advertisements.values():
            verify_advertisement(self.ctx, self.roster, advertisement)
        dealers = [site for site in self.sites if moment[site] > Silent.SHARES]
        dealt = self.share_all(dealers) if dealers else {}
        uploaded = [site for site in dealers if moment[site] > Silent.UPLOAD]
        uploads = self.mask_all(dealt, uploaded)
        uctx = self.cohort.uctx
        for site in uploaded:
            claim = self.members[site].claim(BLOB_DIGEST)
            verify_claim(uctx, site, BLOB_DIGEST, claim, self.roster[site])
        confirming = [site for site in uploaded if moment[site] > Silent.CONFIRM]
        confirmations = self.confirm_all(confirming, uploaded)
        for site, signature in confirmations.items():
            verify_confirmation(uctx, site, uploaded, signature, self.roster[site])
        revealing = [site for site in confirming if moment[site] > Silent.REVEAL]
        answers = {site: self.members[site].reveal(uploaded, confirmations) for site in revealing}
        return Played(self.aggregate(dealt, uploads, answers), dict(uploads))

    def aggregate(
        self, dealt: Dealt, uploads: Mapping[str, Words], answers: Answers, cohort: Cohort | None = None
    ) -> Words:
        """Checks the answers, and recovers the sum of the words of a cohort: of one shard, or the whole one."""
        cohort, uploaded = cohort or self.cohort, list(uploads)
        for revealer, answer in answers.items():
            complained = {dealer for dealer, sites in self.complaints.items() if revealer in sites}
            signature, key = self.members[revealer].reveal_signature(), self.roster[revealer]
            verify_answer(cohort, dealt, uploaded, complained, revealer, answer, signature, key)
        total: Words = np.sum(list(uploads.values()), axis=0, dtype=np.uint64)
        unmask(total, recover_masks(self.ctx, cohort, dealt, uploaded, answers))
        return total


@dataclass(frozen=True)
class Played:
    """What the aggregator holds at the end."""

    total: Words
    uploads: dict[str, Words]


def addressed_to(site: str, dealt: Mapping[str, Mapping[str, DealtShares]]) -> dict[str, DealtShares]:
    """The shares for one member from all others, by dealer."""
    return {dealer: shares[site] for dealer, shares in dealt.items() if dealer != site}
