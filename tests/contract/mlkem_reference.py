"""ML-KEM-768 written out from FIPS 203 over Python integers: slow, not constant-time, for test vectors only.

Algorithm numbers are those of the standard (August 2024).
"""

from hashlib import sha3_256, sha3_512, shake_128, shake_256

Q, N, K = 3329, 256, 3
DU, DV = 10, 4
Poly = list[int]


def _bit_reversed(i: int) -> int:
    return int(f"{i:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reversed(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _bit_reversed(i) + 1, Q) for i in range(128)]


def ntt(f: Poly) -> Poly:  # algorithm 9
    f, i, length = list(f), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            zeta = ZETAS[i]
            i += 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j + length], f[j] = (f[j] - t) % Q, (f[j] + t) % Q
        length //= 2
    return f


def inverse_ntt(f: Poly) -> Poly:  # algorithm 10
    f, i, length = list(f), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            zeta = ZETAS[i]
            i -= 1
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, zeta * (f[j + length] - t) % Q
        length *= 2
    return [x * 3303 % Q for x in f]


def multiply(f: Poly, g: Poly) -> Poly:  # algorithms 11 and 12
    h = []
    for i, gamma in enumerate(GAMMAS):
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        h += [(a0 * b0 + a1 * b1 * gamma) % Q, (a0 * b1 + a1 * b0) % Q]
    return h


def add(*polys: Poly) -> Poly:
    return [sum(column) % Q for column in zip(*polys, strict=True)]


def dot(a: list[Poly], b: list[Poly]) -> Poly:
    return add(*(multiply(x, y) for x, y in zip(a, b, strict=True)))


def encode(f: Poly, d: int) -> bytes:  # algorithm 5
    return sum(x << d * i for i, x in enumerate(f)).to_bytes(32 * d, "little")


def decode(data: bytes, d: int) -> Poly:  # algorithm 6
    number = int.from_bytes(data, "little")
    return [number >> d * i & (1 << d) - 1 for i in range(N)]


def compress(f: Poly, d: int) -> Poly:
    return [((x << d) + Q // 2) // Q % (1 << d) for x in f]


def decompress(f: Poly, d: int) -> Poly:
    return [(x * Q + (1 << d - 1)) >> d for x in f]


def sample_ntt(seed: bytes) -> Poly:  # algorithm 7
    stream, i = shake_128(seed).digest(3 * 1024), 0
    f: Poly = []
    while len(f) < N:
        a, b, c = stream[i : i + 3]
        i += 3
        f += [d for d in (a + 256 * (b % 16), b // 16 + 16 * c) if d < Q]
    return f[:N]


def sample_cbd(data: bytes) -> Poly:  # algorithm 8, eta = 2
    bits = [data[i // 8] >> i % 8 & 1 for i in range(8 * len(data))]
    return [(sum(bits[4 * i : 4 * i + 2]) - sum(bits[4 * i + 2 : 4 * i + 4])) % Q for i in range(N)]


def noise(seed: bytes, first: int) -> list[Poly]:
    return [sample_cbd(shake_256(seed + bytes([first + i])).digest(128)) for i in range(K)]


def matrix(rho: bytes) -> list[list[Poly]]:
    return [[sample_ntt(rho + bytes([j, i])) for j in range(K)] for i in range(K)]


def key_pair(seed: bytes) -> tuple[bytes, bytes]:
    """(encapsulation key, decapsulation key) from d || z: algorithms 13 and 16."""
    d, z = seed[:32], seed[32:]
    digest = sha3_512(d + bytes([K])).digest()
    rho, sigma = digest[:32], digest[32:]
    s, e = [ntt(f) for f in noise(sigma, 0)], [ntt(f) for f in noise(sigma, K)]
    t = [add(dot(row, s), e[i]) for i, row in enumerate(matrix(rho))]
    ek = b"".join(encode(f, 12) for f in t) + rho
    return ek, b"".join(encode(f, 12) for f in s) + ek + sha3_256(ek).digest() + z


def encrypt(ek: bytes, m: bytes, r: bytes) -> bytes:  # algorithm 14
    t = [decode(ek[384 * i : 384 * i + 384], 12) for i in range(K)]
    a, y, e1 = matrix(ek[384 * K :]), [ntt(f) for f in noise(r, 0)], noise(r, K)
    e2 = sample_cbd(shake_256(r + bytes([2 * K])).digest(128))
    u = [add(inverse_ntt(dot([a[j][i] for j in range(K)], y)), e1[i]) for i in range(K)]
    v = add(inverse_ntt(dot(t, y)), e2, decompress(decode(m, 1), 1))
    return b"".join(encode(compress(f, DU), DU) for f in u) + encode(compress(v, DV), DV)


def encapsulate(ek: bytes, m: bytes) -> tuple[bytes, bytes]:
    """(K, ciphertext) with the coins m: algorithm 17."""
    digest = sha3_512(m + sha3_256(ek).digest()).digest()
    return digest[:32], encrypt(ek, m, digest[32:])


def decapsulate(dk: bytes, c: bytes) -> bytes:
    """K, or a key that nobody else has when `c` is garbage: algorithms 15 and 18."""
    s, ek = [decode(dk[384 * i : 384 * i + 384], 12) for i in range(K)], dk[384 * K : 768 * K + 32]
    h, z = dk[768 * K + 32 : 768 * K + 64], dk[768 * K + 64 :]
    u = [decompress(decode(c[32 * DU * i : 32 * DU * (i + 1)], DU), DU) for i in range(K)]
    v = decompress(decode(c[32 * DU * K :], DV), DV)
    w = [(x - y) % Q for x, y in zip(v, inverse_ntt(dot(s, [ntt(f) for f in u])), strict=True)]
    m = encode(compress(w, 1), 1)
    digest = sha3_512(m + h).digest()
    return digest[:32] if encrypt(ek, m, digest[32:]) == c else shake_256(z + c).digest(32)
