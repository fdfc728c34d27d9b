"""Counts the labels of CQ500 and compares them with the shares that the match report shows, as a table on stdout.

python tests/benchmarks/published_shares.py reads.csv

reads.csv is that of CQ500 (http://headctstudy.qure.ai/dataset, CC BY-NC-SA 4.0; not a part of this project): three
readers for each of 491 head CTs. A label is positive where two of three say so. Batch B1 holds every head CT of its
centers in a month; B2 was chosen by words of its reports, so that hemorrhages were more frequent. The exit status is 1
where the upper end of a range is not the share counted here. Qure25k, which gives the lower ends, is not public.
"""

import csv
import sys
from fractions import Fraction
from pathlib import Path

from federation.labels import LABELS

from site_client.ingest.catalog.questions import PUBLISHED_SHARES

COLUMNS = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))
READERS = ("R1", "R2", "R3")


def shares(rows: list[dict[str, str]]) -> dict[str, Fraction]:
    """Shares of the rows for which a label has two of three readers."""
    return {
        label: Fraction(
            sum(sum(row[f"{reader}:{column}"] == "1" for reader in READERS) >= 2 for row in rows), len(rows)
        )
        for label, column in COLUMNS.items()
    }


def main() -> int:
    with Path(sys.argv[1]).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    batches = {batch: shares([row for row in rows if row["Category"] == batch]) for batch in ("B1", "B2")}
    counted, differing = shares(rows), 0
    print(f"{len(rows)} head CTs\n{'label':18}{'all':>8}{'B1':>8}{'B2':>8}  published here")
    for label, share in counted.items():
        published = PUBLISHED_SHARES[label]
        is_same = abs(published.high - share) < 1e-9
        differing += not is_same
        parts = "".join(f"{float(part):8.1%}" for part in (share, *(batch[label] for batch in batches.values())))
        word = "" if is_same else "  DIFFERS"
        print(f"{label:18}{parts}  {published.low:.1%} to {published.high:.1%}{word}")
    return 1 if differing or len(rows) != 491 else 0


if __name__ == "__main__":
    sys.exit(main())
