"""The start of an agent with a long egress ledger, in one file and in segments, as JSON.

python tests/benchmarks/ledger.py [--entries 100000]

A year of polls is some 800,000 entries. Processor seconds and bytes read by `Ledger(...)`; the entries are real ones.
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from site_client.agent.chained_file import GENESIS, canonical, line_hash
from site_client.agent.egress.ledger import CHAIN, Ledger
from tests.site_client.agent.test_segments import bytes_read, entry_of_a_poll, ten_years


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    entries = parser.parse_args().entries
    signer = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one" / "ledger.jsonl"
        one.parent.mkdir()
        write_one_file(one, signer, entries)
        old_s, old_bytes = start(one, signer)
        new = Path(folder) / "new" / "ledger.jsonl"
        total = ten_years(new, signer, 4 << 20)
        new_s, new_bytes = start(new, signer)
    old_s_of_ten_years = old_s * total / entries
    figures = {
        "one_file": {"entries": entries, "s": round(old_s, 2), "us_an_entry": round(1e6 * old_s / entries, 1)},
        "ten_years_in_segments": {"entries": total, "s": round(new_s, 2), "mb_read": round(new_bytes / 1e6, 1)},
        "mb_read_of_one_file_of_ten_years": round(old_bytes * total / entries / 1e6),
        "times_faster": round(old_s_of_ten_years / new_s),
    }
    print(json.dumps(figures, indent=1))


def write_one_file(path: Path, signer: Ed25519PrivateKey, entries: int) -> None:
    head, entry = GENESIS, entry_of_a_poll(signer)
    with path.open("wb") as file:
        for seq in range(1, entries + 1):
            line = canonical(CHAIN.signed(entry | {"seq": seq, "prev_hash": head}, signer))
            head = line_hash(line)
            file.write(line + b"\n")


def start(path: Path, signer: Ed25519PrivateKey) -> tuple[float, int]:
    began, before = time.process_time(), bytes_read()
    Ledger(path, signer, lambda: datetime.now(UTC)).close()
    return time.process_time() - began, bytes_read() - before


if __name__ == "__main__":
    main()
