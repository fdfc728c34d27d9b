"""The vectors in vectors/secagg.json, held against both implementations, message by message."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.secagg import Member, Words, context, recover_masks, split, unmask

from tests.contract import mlkem_reference
from tests.contract import secagg_reference as reference
from tests.contract.secagg_session import addressed_to

CASES = json.loads(reference.VECTORS.read_text("utf-8"))
by_what = pytest.mark.parametrize("case", CASES, ids=[case["what"] for case in CASES])


@by_what
def test_the_slow_independent_implementation_says_what_the_vectors_say(case: dict[str, Any]) -> None:
    assert reference.play(case) == case["expected"]


def given_bytes(random: dict[str, str]) -> Callable[[int], bytes]:
    """The member's randomness in the order in which `Member.begin` asks for it."""
    chunks = iter([random["mask"], random["share"], random["seed"], random["polynomial"]])
    return lambda size: bytes.fromhex(next(chunks))[:size]


@by_what
def test_federation_secagg_says_what_the_vectors_say(case: dict[str, Any]) -> None:
    expected, inputs = case["expected"], case["context"]
    digests = {name: bytes.fromhex(inputs[name]) for name in ("plan_digest", "base_digest", "run_id")}
    ctx = context(**(inputs | digests))
    assert ctx.hex() == expected["ctx"]

    signing_keys = {
        site: Ed25519PrivateKey.from_private_bytes(bytes.fromhex(member["signing_key"]))
        for site, member in case["members"].items()
    }
    roster = {site: key.public_key().public_bytes_raw() for site, key in signing_keys.items()}
    members = {
        site: Member.begin(ctx, site, signing_keys[site], given_bytes(member["random"]))
        for site, member in case["members"].items()
    }
    shown = {site: member.advertisement for site, member in members.items()}
    assert {
        site: [part.hex() for part in (a.mask_key, a.kem_key, a.share_key, a.seed_commitment, a.signature)]
        for site, a in shown.items()
    } == expected["advertisements"]
    (cohort,) = split(ctx, shown)
    assert (cohort.uctx.hex(), cohort.threshold) == (expected["uctx"], expected["threshold"])

    owners = {advertisement.kem_key: site for site, advertisement in shown.items()}
    dealt = {}
    for site in case["dealers"]:
        random = {kind: bytes.fromhex(value) for kind, value in case["members"][site]["random"].items()}

        def encapsulate(key: bytes, random: dict[str, bytes] = random) -> tuple[bytes, bytes]:
            return mlkem_reference.encapsulate(key, reference.coins(random, owners[key]))

        dealt[site] = members[site].share(shown, roster, encapsulate=encapsulate)
    assert {s: {r: [part.hex() for part in astuple(d)] for r, d in to.items()} for s, to in dealt.items()} == expected[
        "dealt"
    ]

    uploads, claims = {}, {}
    for site in case["uploaded"]:
        words = np.array(case["members"][site]["words"], dtype=np.uint64)
        assert members[site].receive(addressed_to(site, dealt)) == {}
        uploads[site] = members[site].mask(words, addressed_to(site, dealt))
        claims[site] = members[site].claim(hashlib.sha256(uploads[site].astype("<u8").tobytes()).digest()).hex()
    assert {site: masked.tolist() for site, masked in uploads.items()} == expected["masked"]
    assert claims == expected["claims"]

    confirmations = {site: members[site].confirm(case["uploaded"]) for site in case["confirming"]}
    assert {site: signature.hex() for site, signature in confirmations.items()} == expected["confirmations"]

    answers = {site: members[site].reveal(case["uploaded"], confirmations) for site in case["revealing"]}
    assert {
        site: {about: [share.kind.name, share.share.hex()] for about, share in answer.items()}
        for site, answer in answers.items()
    } == expected["answers"]
    signatures = {site: members[site].reveal_signature().hex() for site in answers}
    assert signatures == expected["answer_signatures"]

    total: Words = np.sum(list(uploads.values()), axis=0, dtype=np.uint64)
    unmask(total, recover_masks(ctx, cohort, dealt, case["uploaded"], answers))
    assert total.tolist() == expected["sum"]
    plain = [case["members"][site]["words"] for site in case["uploaded"]]
    assert expected["sum"] == [sum(column) % (1 << 64) for column in zip(*plain, strict=True)]
