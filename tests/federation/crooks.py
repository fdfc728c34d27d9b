"""Corrupt members whose lies no message shows: they mask words that no honest member has, deal another secret, or deal
garbage to a few, or send pair secrets that are not theirs.

A crook runs the site's own code except for the one function that lies for it. All sites of a `World` share a process,
so the lie asks first whose member is at work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from federation import encoding
from federation.secagg import DealtShares, Member
from federation.secagg import member as member_module
from federation.secagg.cohort import Cohort
from federation.secagg.secret import Seed
from federation.secagg.state import OwnSecrets
from federation.secagg.transcript import dealt_statement
from numpy.typing import NDArray

from site_client.agent.rounds import masking
from site_client.agent.rounds.contribution import Contribution, mask_contribution

NOISE = "noise"  # words drawn at random
COUNTS = "counts"  # more slices of one label than the plan lets a member have
SPOILED = (NOISE, COUNTS)


@dataclass(frozen=True)
class Crooks:
    """Who lies from here on.

    spoilers: by site how it spoils sums. dealers: of another secret. garbage: by dealer, who gets no shares from it.
    pads: dealers whose pair secrets are not those of their mask secret.
    """

    spoilers: dict[str, str] = field(default_factory=dict)
    dealers: set[str] = field(default_factory=set)
    garbage: dict[str, set[str]] = field(default_factory=dict)
    pads: set[str] = field(default_factory=set)


def let_in(patch: pytest.MonkeyPatch, crooks: Crooks) -> Crooks:
    """Put the lies in place; what `crooks` holds may change at any time."""
    honest_split, honest_share, honest_deal = member_module._split_secrets, Member.share, Member._deal
    dealing: list[str] = []

    def mask(member: Member, contribution: Contribution, dealt: Mapping[str, DealtShares], coins: bytes) -> memoryview:
        if member.site not in crooks.spoilers:
            return mask_contribution(member, contribution, dealt, coins)
        words = _spoiled(contribution, crooks.spoilers[member.site])
        return member.mask(words, dealt, in_place=True).astype("<u8", copy=False).data.cast("B")

    def share(member: Member, *arguments: object) -> Mapping[str, DealtShares]:
        dealing[:] = [member.site]
        return honest_share(member, *arguments)  # type: ignore[arg-type]  # passed on as they came

    def split(secrets: OwnSecrets, cohort: Cohort) -> dict[str, tuple[bytes, bytes]]:
        if crooks.dealers.intersection(dealing):
            secrets = replace(secrets, seed=Seed(bytes(range(32))))
        return honest_split(secrets, cohort)

    def deal(member: Member, *arguments: Any) -> dict[str, DealtShares]:
        dealt = honest_deal(member, *arguments)
        lies = {
            victim: replace(dealt[victim], ciphertext=bytes(len(dealt[victim].ciphertext)))
            for victim in crooks.garbage.get(member.site, set()) & set(dealt)
        }
        if member.site in crooks.pads:
            lies |= {
                victim: replace(shares, pair_secret=bytes(len(shares.pair_secret))) for victim, shares in dealt.items()
            }
        for victim, bad in lies.items():
            signature = member._signing_key.sign(dealt_statement(arguments[1].uctx, member.site, victim, bad))
            dealt[victim] = replace(bad, signature=signature)
        return dealt

    patch.setattr(Member, "_deal", deal)
    patch.setattr(masking, "mask_contribution", mask)
    patch.setattr(Member, "share", share)
    patch.setattr(member_module, "_split_secrets", split)
    return crooks


def _spoiled(contribution: Contribution, how: str) -> NDArray[np.uint64]:
    layout, rounding = contribution.layout, np.random.default_rng(1)
    if how == NOISE:
        return rounding.integers(0, 2**64, layout.words, np.uint64)
    words = encoding.encode(layout, contribution.delta, contribution.header, rounding)
    words[encoding.HEADER_WORDS - 1] += np.uint64(layout.members_max * layout.count_cap)
    return words
