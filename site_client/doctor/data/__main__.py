"""python -m site_client.doctor.data FILE: one JSON line a check, on standard output."""

import sys
from pathlib import Path

from site_client.config import load
from site_client.doctor.data.checks import checks
from site_client.doctor.result import carry_out, to_json_line

for line in carry_out(checks(load(Path(sys.argv[1])))):
    print(to_json_line(line), flush=True)
