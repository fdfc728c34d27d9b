"""A second, slow implementation of secure aggregation (without shards), to hold the first one against.

It shares nothing with `federation.secagg` but the primitives X25519, Ed25519, AES (block by block) and AES-GCM of
`cryptography`. ML-KEM-768 is `mlkem_reference`'s. HKDF is written out over `hmac`, counter mode over single blocks,
sharing over textbook Horner and Lagrange, words over Python integers. It plays whole attempts from given inputs and
records everything that is sent.

    python -m tests.contract.secagg_reference --write      writes tests/contract/vectors/secagg.json
"""

import argparse
import hashlib
import hmac
import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.contract import mlkem_reference as mlkem

VECTORS = Path(__file__).with_name("vectors") / "secagg.json"
P = 2**256 + 297
Dealt = dict[str, dict[str, list[bytes]]]  # by dealer, then by receiver: the fields as they are sent
Answer = dict[str, tuple[str, bytes]]  # (kind, share) by the member it is about


def enc(*fields: bytes) -> bytes:
    out = struct.pack(">Q", len(fields))
    for f in fields:
        out += struct.pack(">Q", len(f)) + f
    return out


def label(name: str, *fields: bytes) -> bytes:
    return enc(b"hemofed secagg 2", name.encode("ascii"), *fields)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def num(value: int) -> bytes:
    return struct.pack(">Q", value)


def hkdf(key: bytes, info: bytes, blocks: int = 1) -> bytes:
    """RFC 5869 with SHA-256, no salt, one or more whole blocks of output."""
    prk = hmac.new(bytes(32), key, "sha256").digest()
    out, block = b"", b""
    for k in range(1, blocks + 1):
        block = hmac.new(prk, block + info + bytes([k]), "sha256").digest()
        out += block
    return out


def mask_keys(secret: bytes) -> tuple[bytes, bytes, bytes]:
    """X25519 private key, KEM encapsulation and decapsulation key that follow from a mask secret."""
    return (hkdf(secret, label("mask x25519")), *mlkem.key_pair(hkdf(secret, label("mask kem"), 2)))


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def coins(secret: dict[str, bytes], receiver: str) -> bytes:
    """What the encapsulation to one receiver draws, in the vectors."""
    return sha(secret["kem"] + receiver.encode())


def ctr_stream(key: bytes, size: int) -> bytes:
    """AES-256 in counter mode from block 0, one block at a time."""
    out = b""
    block = 0
    while len(out) < size:
        ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        out += ecb.update(block.to_bytes(16, "big")) + ecb.finalize()
        block += 1
    return out[:size]


def dh(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def poly_shares(secret: bytes, t: int, n: int, stream: bytes) -> list[bytes]:
    coefs = [int.from_bytes(secret, "big")]
    coefs += [int.from_bytes(stream[48 * k : 48 * k + 48], "big") % P for k in range(t - 1)]
    shares = []
    for x in range(1, n + 1):
        y = 0
        for c in reversed(coefs):
            y = (y * x + c) % P
        shares.append(y.to_bytes(33, "big"))
    return shares


def lagrange_zero(points: list[tuple[int, int]]) -> bytes:
    total = 0
    for i, (xi, yi) in enumerate(points):
        term = yi
        for j, (xj, _) in enumerate(points):
            if i != j:
                term = term * -xj * pow(xi - xj, P - 2, P) % P
        total += term
    return (total % P).to_bytes(32, "big")


def mask_words(words: list[int], key: bytes, sign: int) -> list[int]:
    stream = ctr_stream(key, 8 * len(words))
    return [(w + sign * struct.unpack_from("<Q", stream, 8 * k)[0]) % 2**64 for k, w in enumerate(words)]


def play(case: dict[str, Any]) -> dict[str, Any]:
    """Everything said in the attempt described by `case` (hex strings and integers, see VECTORS)."""
    c = case["context"]
    ctx = sha(
        label(
            "context",
            bytes.fromhex(c["plan_digest"]),
            bytes.fromhex(c["base_digest"]),
            bytes.fromhex(c["run_id"]),
            num(c["round_number"]),
            num(c["attempt"]),
            num(c["roster_epoch"]),
            num(c["shard"]),
        )
    )
    sites = sorted(case["members"], key=lambda s: s.encode())
    n = len(sites)
    t = 2 * n // 3 + 1
    secret = {s: {k: bytes.fromhex(v) for k, v in case["members"][s]["random"].items()} for s in sites}
    signer = {s: Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["members"][s]["signing_key"])) for s in sites}
    adv, private = {}, {}
    for s in sites:
        private[s] = mask_keys(secret[s]["mask"])
        keys = (
            public(private[s][0]),
            private[s][1],
            public(secret[s]["share"]),
            sha(label("seed", ctx, s.encode(), secret[s]["seed"])),
        )
        adv[s] = (*keys, signer[s].sign(label("keys", ctx, s.encode(), *keys)))
    uctx = sha(label("cohort", ctx, num(t), *(enc(s.encode(), *adv[s][:4]) for s in sites)))

    own = {}
    for s in sites:
        streams = [
            ctr_stream(hkdf(secret[s]["polynomial"], label("polynomial", uctx, kind)), 48 * (t - 1))
            for kind in (b"SEED", b"MASK_KEY")
        ]
        seed_shares = poly_shares(secret[s]["seed"], t, n, streams[0])
        key_shares = poly_shares(secret[s]["mask"], t, n, streams[1])
        own[s] = dict(zip(sites, zip(seed_shares, key_shares, strict=True), strict=True))

    u2 = [s for s in sites if s in case["dealers"]]
    u3 = [s for s in sites if s in case["uploaded"]]
    dealt: Dealt = {}
    for s in u2:
        dealt[s] = {}
        for r in sites:
            names = (s.encode(), r.encode())
            kem = pair_secret = ciphertext = b""
            if r != s:
                shared, kem = mlkem.encapsulate(adv[r][1], coins(secret[s], r))
                info = label("share", uctx, *names, sha(kem))
                key = hkdf(dh(secret[s]["share"], adv[r][2]) + shared, info)
                ciphertext = AESGCM(key).encrypt(bytes(12), b"".join(own[s][r]), info)
                if names[0] < names[1]:
                    x = hkdf(secret[s]["mask"], label("pair secret", uctx, *names))
                    pair_secret = xor(x, hkdf(shared, label("pair pad", uctx, *names)))
            digests = [
                sha(label("dealt share", uctx, kind, *names, share))
                for kind, share in zip((b"SEED", b"MASK_KEY"), own[s][r], strict=True)
            ]
            fields = [kem, pair_secret, ciphertext, *digests]
            signed = label("dealt", uctx, *names, sha(label("dealt shares", *fields)))
            dealt[s][r] = [*fields, signer[s].sign(signed)]

    def self_key(s: str) -> bytes:
        return hkdf(secret[s]["seed"], label("self", uctx, s.encode()))

    def pair(a: str, b: str) -> bytes:
        return pair_key(uctx, secret[a]["mask"], a, b, adv[b][0], dealt[b][a])

    masked = {}
    for s in u3:
        words = mask_words(case["members"][s]["words"], self_key(s), 1)
        for r in u2:
            if r != s:
                sign = 1 if s.encode() < r.encode() else -1
                words = mask_words(words, pair(s, r), sign)
        masked[s] = words
    blob = {s: sha(struct.pack(f"<{len(w)}Q", *w)) for s, w in masked.items()}
    h_u3 = sha(label("uploaded", *(s.encode() for s in u3)))

    answers = {
        s: {a: ("SEED", own[a][s][0]) if a in u3 else ("MASK_KEY", own[a][s][1]) for a in u2} for s in case["revealing"]
    }
    return {
        "ctx": ctx.hex(),
        "uctx": uctx.hex(),
        "threshold": t,
        "advertisements": {s: [part.hex() for part in adv[s]] for s in sites},
        "dealt": {s: {r: [part.hex() for part in d] for r, d in to.items()} for s, to in dealt.items()},
        "masked": masked,
        "claims": {s: signer[s].sign(label("upload", uctx, s.encode(), blob[s])).hex() for s in u3},
        "confirmations": {s: signer[s].sign(label("confirm", uctx, h_u3)).hex() for s in case["confirming"]},
        "answers": {s: {a: [kind, share.hex()] for a, (kind, share) in to.items()} for s, to in answers.items()},
        "answer_signatures": {
            s: signer[s]
            .sign(label("reveal", uctx, s.encode(), sha(label("answer", *answer_entries(sites, answers[s])))))
            .hex()
            for s in answers
        },
        "sum": recover_sum(sites, t, adv, uctx, u2, u3, masked, answers, dealt),
    }


def answer_entries(sites: list[str], answer: Answer) -> list[bytes]:
    return [enc(a.encode(), answer[a][0].encode(), answer[a][1]) for a in sites if a in answer]


def pair_key(uctx: bytes, mask_secret: bytes, a: str, b: str, b_mask_key: bytes, dealt_to_a: Sequence[bytes]) -> bytes:
    """The key of the mask of a and b, from the mask secret of a."""
    x25519, _ek, dk = mask_keys(mask_secret)
    low, high = sorted((a.encode(), b.encode()))
    if low == a.encode():
        x = hkdf(mask_secret, label("pair secret", uctx, low, high))
    else:
        x = xor(dealt_to_a[1], hkdf(mlkem.decapsulate(dk, dealt_to_a[0]), label("pair pad", uctx, low, high)))
    return hkdf(dh(x25519, b_mask_key) + x, label("mask", uctx, low, high))


def recover_sum(
    sites: list[str],
    t: int,
    adv: Mapping[str, Sequence[bytes]],
    uctx: bytes,
    u2: list[str],
    u3: list[str],
    masked: dict[str, list[int]],
    answers: dict[str, Answer],
    dealt: Dealt,
) -> list[int]:
    """The aggregator, from what was sent alone."""
    place = {s: k + 1 for k, s in enumerate(sites)}
    total = [sum(column) % 2**64 for column in zip(*masked.values(), strict=True)]
    for about in u2:
        points = [(place[s], int.from_bytes(answers[s][about][1], "big")) for s in list(answers)[-t:]]
        secret = lagrange_zero(points)
        if about in u3:
            total = mask_words(total, hkdf(secret, label("self", uctx, about.encode())), -1)
            continue
        for s in u3:
            key = pair_key(uctx, secret, about, s, adv[s][0], dealt[s][about])
            total = mask_words(total, key, -1 if s.encode() < about.encode() else 1)
    return total


def make_case(names: list[str], silent: dict[str, list[str]], length: int, seed: int) -> dict[str, Any]:
    """A case with random inputs. silent: for each phase after keys, who says nothing from there on."""
    draw = random.Random(seed)

    def speaking(*phases: str) -> list[str]:
        gone = {s for phase in phases for s in silent.get(phase, ())}
        return [s for s in sorted(names, key=str.encode) if s not in gone]

    return {
        "context": {
            "plan_digest": draw.randbytes(32).hex(),
            "base_digest": draw.randbytes(32).hex(),
            "run_id": draw.randbytes(16).hex(),
            "round_number": draw.randrange(1, 100),
            "attempt": draw.randrange(1, 4),
            "roster_epoch": draw.randrange(1, 9),
            "shard": 0,
        },
        "members": {
            s: {
                "signing_key": draw.randbytes(32).hex(),
                "random": {kind: draw.randbytes(32).hex() for kind in ("mask", "share", "seed", "polynomial", "kem")},
                "words": [draw.getrandbits(64) for _ in range(length)],
            }
            for s in names
        },
        "dealers": speaking("shares"),
        "uploaded": speaking("shares", "upload"),
        "confirming": speaking("shares", "upload", "confirm"),
        "revealing": speaking("shares", "upload", "confirm", "reveal"),
    }


def make_vectors() -> list[dict[str, Any]]:
    described: list[tuple[str, list[str], dict[str, list[str]], int]] = [
        ("three members, nobody drops", ["north", "south", "east"], {}, 5),
        ("one vanishes before it deals", ["a", "b", "c", "d"], {"shares": ["b"]}, 4),
        ("one vanishes before its upload", ["a", "b", "c", "d"], {"upload": ["a"]}, 4),
        ("one vanishes before it confirms", ["a", "b", "c", "d"], {"confirm": ["d"]}, 4),
        ("one vanishes before it reveals", ["a", "b", "c", "d"], {"reveal": ["c"]}, 4),
        (
            "seven members with names beyond ASCII, one vanishes in each of two phases",
            ["Ålesund", "B", "zz", "z", "Łódź", "a-10", "Ω"],
            {"upload": ["Ω"], "reveal": ["a-10"]},
            7,
        ),
    ]
    vectors = []
    for seed, (what, names, silent, length) in enumerate(described):
        case = make_case(names, silent, length, seed)
        vectors.append({"what": what, **case, "expected": play(case)})
    return vectors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    VECTORS.write_text(json.dumps(make_vectors(), indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
