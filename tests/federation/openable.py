"""What an aggregator could open with everything it ever heard, by the masks alone: no trust in any of its code.

An upload is y_i = x_i + PRG(b_i) + Σ_j ± PRG(k_ij), over the members j whose shares i had. A sum Σ c_i y_i can be
opened when every mask in it is known or cancels:

    PRG(b_i)    known with t shares of the seed of i
    PRG(k_ij)   known with t shares of the mask key of i or of j, or when i or j is corrupt; cancels when c_i = c_j

A share is known when its holder revealed it, its dealer opened it, or its holder is corrupt.

So what can be opened are the connected components of members joined by unknown pairwise masks, provided that every seed
in them is known and no unknown mask leads out.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from federation.secagg import threshold
from federation.secagg.state import MemberState
from federation.v1 import blobs_pb2, secagg_pb2

from tests.federation.wire import Heard

SEED, MASK_KEY = secagg_pb2.RevealedShare.SEED, secagg_pb2.RevealedShare.MASK_KEY
Attempt = tuple[bytes, int, int]  # run, round, attempt


@dataclass
class Group:
    """The members of one attempt that agree on who takes part (one uctx)."""

    size: int
    corrupt: frozenset[str]  # of U1
    peers: dict[str, frozenset[str]] = field(default_factory=dict)  # whom each member's pairwise masks are with
    dealt: set[str] = field(default_factory=set)
    # By kind, then by the member that the shares are of: their honest holders.
    revealed: dict[int, dict[str, set[str]]] = field(
        default_factory=lambda: {SEED: defaultdict(set), MASK_KEY: defaultdict(set)}
    )

    def known(self, kind: int) -> set[str]:
        """The members whose secret of this kind the aggregator can put together."""
        holders = {about: self.revealed[kind][about] | self.corrupt for about in self.dealt}
        return {about for about, known in holders.items() if len(known) >= threshold(self.size)}

    def openable(self) -> list[frozenset[str]]:
        """Every set of honest members whose plain sum the aggregator can compute, and no smaller one within it."""
        seeds, keys = self.known(SEED), self.known(MASK_KEY)
        honest = set(self.peers) - self.corrupt
        joined: dict[str, set[str]] = {site: set() for site in honest}
        closed = {site for site in honest if site not in seeds}
        for site in honest:
            for peer in self.peers[site] - self.corrupt:
                if site in keys or peer in keys:
                    continue
                if peer in honest and site in self.peers[peer]:
                    joined[site].add(peer)
                else:
                    closed.add(site)
        return [part for part in components(joined) if not part & closed]


def groups(
    heard: Iterable[Heard], states: Mapping[bytes, MemberState], corrupt: Collection[str]
) -> dict[Attempt, list[Group]]:
    """From what was heard, and from what each member's disk said of its cohort (by its mask key)."""
    uploaded = {one.message.digest for one in heard if isinstance(one.message, blobs_pb2.BlobChunk)}
    by_name: dict[tuple[Attempt, str], MemberState] = {}
    found: dict[Attempt, dict[bytes, Group]] = defaultdict(dict)
    for one in heard:
        if not isinstance(one.message, secagg_pb2.KeysMessage) or one.site in corrupt:
            continue
        state = states[one.message.advertisement.mask_key]
        if not state.uctx:
            continue
        attempt = attempt_of(one.message.round)
        by_name[attempt, one.site] = state
        in_it = frozenset(corrupt) & frozenset(state.cohort)
        group = found[attempt].setdefault(state.uctx, Group(len(state.cohort), in_it))
        if state.upload_digest in uploaded:
            group.peers[one.site] = frozenset(state.received)
    _listen(heard, by_name, found)
    return {attempt: list(in_attempt.values()) for attempt, in_attempt in found.items()}


def _listen(
    heard: Iterable[Heard],
    by_name: Mapping[tuple[Attempt, str], MemberState],
    found: Mapping[Attempt, Mapping[bytes, Group]],
) -> None:
    """Shares dealt, opened and revealed."""
    for one in heard:
        if not isinstance(one.message, secagg_pb2.SharesMessage | secagg_pb2.ConfirmMessage | secagg_pb2.RevealMessage):
            continue
        attempt = attempt_of(one.message.round)
        if (attempt, one.site) not in by_name:
            continue
        group = found[attempt][by_name[attempt, one.site].uctx]
        match one.message:
            case secagg_pb2.SharesMessage():
                group.dealt.add(one.site)
            case secagg_pb2.ConfirmMessage(confirmation=confirmation):
                for opened in confirmation.opened:
                    group.revealed[SEED][one.site].add(opened.to_site)
                    group.revealed[MASK_KEY][one.site].add(opened.to_site)
            case secagg_pb2.RevealMessage(shares=shares):
                for share in shares:
                    group.revealed[share.kind][share.about_site].add(one.site)


def components(joined: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """Connected components of an undirected graph."""
    left, parts = set(joined), []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            site = edge.pop()
            part.add(site)
            edge |= joined[site] - part
        left -= part
        parts.append(frozenset(part))
    return parts


def alone(sums: Collection[frozenset[str]]) -> set[str]:
    """The members whose own words follow from these sums of one round by adding and subtracting."""
    sites = sorted(set().union(*sums))
    if not sites:
        return set()
    rows = np.array([[float(site in one) for site in sites] for one in sums])
    rank = np.linalg.matrix_rank(rows)
    units = np.eye(len(sites))
    return {
        site for site, unit in zip(sites, units, strict=True) if np.linalg.matrix_rank(np.vstack([rows, unit])) == rank
    }


def attempt_of(ref: blobs_pb2.RoundRef) -> Attempt:
    return (ref.run_id, ref.round, ref.attempt)
