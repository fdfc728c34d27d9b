"""What secure aggregation costs as cohorts grow: CPU of one member and of the aggregator, bytes of one member.

    python tests/benchmarks/secagg_curve.py --json curve.json --svg docs/secagg_cost.svg

One member is real and makes every check; of the others only those messages are made that it or the recovery reads, so
that the curve takes minutes and not n times as long. The aggregator's checks are timed on the real member's messages,
times the members. 30 % of the members vanish between dealing and uploading. Masks are timed on a slice of the vector
and scaled: their cost is linear in its length, and the slice is far larger than a chunk of the keystream. Above 500
members the cohort is split into shards; the aggregator's figures are of one shard, times their number. Every secret is
checked where it is recovered, so a wrong session draws no curve.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import numpy as np
from federation.encoding import Layout
from federation.secagg import (
    Advertisement,
    Cohort,
    DealtShares,
    Phase,
    RevealedShare,
    ShareKind,
    masks,
    recover_masks,
    split,
    unmask,
    verify_answer,
    verify_dealt,
)
from federation.secagg.keys import encapsulate
from federation.secagg.member import _split_secrets
from federation.secagg.transcript import SIGNATURE_BYTES, confirm_statement
from federation.vocabulary import Metric

from tests.contract.secagg_session import BLOB_DIGEST, Session, addressed_to

T = TypeVar("T")
SLICE_WORDS = 1 << 17
DROPPED = 0.3
Row = dict[str, float]
Shares = dict[str, dict[str, tuple[bytes, bytes]]]  # (seed share, mask-key share) by dealer, then receiver


def measure(sites: int, params: int) -> Row:
    """The figures of one cohort size."""
    session = Session(sites, length=SLICE_WORDS if sites <= 100 else SLICE_WORDS // 4)
    site = session.sites[0]
    member, shown = session.members[site], session.advertisements
    shards = split(session.ctx, shown)
    cohort = next(shard for shard in shards if site in shard.members)
    scale = Layout(params, 6, min(sites, 500), 1.0, 1000, bytes(32), frozenset(Metric)).words / session.length
    others = [name for name in cohort.members if name != site]
    vanished = others[: int(DROPPED * len(cohort.members))]
    uploaded = [name for name in cohort.members if name not in vanished]
    shares, dealt = deal_for(session, cohort, {site, *vanished})
    received = addressed_to(site, dealt)

    dealt[site], share_s = timed(lambda: member.share(shown, session.roster))
    _, receive_s = timed(lambda: member.receive(received))
    _, mask_s = timed(lambda: member.mask(session.words[site], received))
    streams, words = member._streams(member._secrets(Phase.MASKED), received), session.words[site].copy()
    _, keystreams_s = timed(lambda: masks.apply(words, streams))
    member.claim(BLOB_DIGEST)
    statement = confirm_statement(cohort.uctx, uploaded)
    signatures = {name: session.signing_keys[name].sign(statement) for name in uploaded[: cohort.threshold]}
    _, confirm_s = timed(lambda: member.confirm(uploaded))
    answer, reveal_s = timed(lambda: member.reveal(uploaded, signatures))

    signature, signing_key = member.reveal_signature(), session.roster[site]

    def verify_what_it_dealt() -> None:
        for name, sent in dealt[site].items():
            verify_dealt(cohort.uctx, site, name, sent, signing_key)

    _, verify_dealt_s = timed(verify_what_it_dealt)
    _, verify_answer_s = timed(lambda: verify_answer(cohort, dealt, uploaded, (), site, answer, signature, signing_key))
    answers = {name: answer_of(name, shares, uploaded) for name in uploaded} | {site: answer}
    recovered, recover_masks_s = timed(lambda: recover_masks(session.ctx, cohort, dealt, uploaded, answers))
    total = np.zeros(session.length, np.uint64)
    _, unmask_s = timed(lambda: unmask(total, recovered))
    advertisement_bytes = size_bytes(member.advertisement)
    return {
        "sites": sites,
        "shard": len(cohort.members),
        "shards": len(shards),
        "member_protocol_s": share_s + receive_s + mask_s - keystreams_s + confirm_s + reveal_s,
        "member_masks_s": keystreams_s * scale,
        # Besides these a member signs its claim, its confirmation and its answer.
        "member_up_bytes": advertisement_bytes
        + sum(map(size_bytes, dealt[site].values()))
        + sum(map(size_bytes, answer.values()))
        + 3 * SIGNATURE_BYTES,
        "member_down_bytes": advertisement_bytes * sites
        + sum(map(size_bytes, received.values()))
        + SIGNATURE_BYTES * len(signatures),
        "aggregator_checks_s": (verify_dealt_s * len(cohort.members) + verify_answer_s * len(uploaded)) * len(shards),
        "aggregator_secrets_s": recover_masks_s * len(shards),
        "aggregator_unmask_s": unmask_s * scale * len(shards),
    }


def deal_for(session: Session, cohort: Cohort, receivers: set[str]) -> tuple[Shares, dict[str, dict[str, DealtShares]]]:
    """The shares that every member splits its secrets into, in clear; and the messages in which `receivers` get theirs.

    Messages are made for the real member, which reads them, and for the vanished, whose masks hang on them.
    """
    shares, dealt = {}, {}
    for dealer in cohort.members:
        member = session.members[dealer]
        secrets = member._secrets(Phase.ADVERTISED)
        shares[dealer] = _split_secrets(secrets, cohort)
        addressed = {receiver: shares[dealer][receiver] for receiver in receivers}
        dealt[dealer] = member._deal(secrets, cohort, addressed, encapsulate)
    return shares, dealt


def answer_of(revealer: str, shares: Shares, uploaded: list[str]) -> dict[str, RevealedShare]:
    kept = set(uploaded)
    return {
        about: RevealedShare(ShareKind.SEED, dealt[revealer][0])
        if about in kept
        else RevealedShare(ShareKind.MASK_KEY, dealt[revealer][1])
        for about, dealt in shares.items()
    }


def size_bytes(message: Advertisement | DealtShares | RevealedShare) -> int:
    """Bytes of keys, digests, ciphertexts, shares and signatures; names and the frame of protobuf are not counted."""
    return sum(len(field) for field in astuple(message) if isinstance(field, bytes))


def timed(step: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = step()
    return result, time.process_time() - start


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 440, 70, 50, 230, 50
CURVES = (
    ("member_protocol_s", "member: keys, shares, signatures", "#1b7f5c"),
    ("member_masks_s", "member: masks", "#2563a8"),
    ("aggregator_checks_s", "aggregator: verifying shares", "#6a4c93"),
    ("aggregator_secrets_s", "aggregator: recovering secrets", "#b45f06"),
    ("aggregator_unmask_s", "aggregator: unmasking", "#a61c3c"),
)


def draw(rows: list[Row], params: int) -> str:
    """The curves as SVG, both axes logarithmic."""
    values = [row[key] for row in rows for key, _, _ in CURVES]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log10(rows[0]["sites"]), math.log10(rows[-1]["sites"])

    def x(sites: float) -> float:
        return LEFT + (math.log10(sites) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(seconds: float) -> float:
        return TOP + (high - math.log10(seconds)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="13">Secure aggregation of {params / 1e6:g} million parameters, '
        f"{DROPPED:.0%} of the members vanish: CPU seconds a round, one core</text>",
    ]
    for power in range(low, high + 1):
        parts.append(_line(LEFT, y(10**power), WIDTH - RIGHT, y(10**power)))
        parts.append(_text(LEFT - 8, y(10**power) + 4, f"{10.0**power:g} s", "end"))
    for row in rows:
        parts.append(_line(x(row["sites"]), TOP, x(row["sites"]), HEIGHT - BOTTOM))
        parts.append(_text(x(row["sites"]), HEIGHT - BOTTOM + 18, f"{row['sites']:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "members (above 500: in shards of 250)", "middle"))
    for key, name, color in CURVES:
        points = " ".join(f"{x(row['sites']):.1f},{y(row[key]):.1f}" for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(_text(WIDTH - RIGHT + 8, y(rows[-1][key]) + 4, name, "start", color))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 16, 32, 64, 125, 250, 500, 1000])
    parser.add_argument("--params", type=int, default=8_000_000)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--svg", type=Path, help="draw the curve here")
    options = parser.parse_args()
    rows = [measure(sites, options.params) for sites in options.sites]
    figures = json.dumps({"params": options.params, "dropped": DROPPED, "rows": rows}, indent=2)
    print(figures)
    if options.json:
        options.json.write_text(figures + "\n")
    if options.svg:
        options.svg.write_text(draw(rows, options.params))


if __name__ == "__main__":
    main()
