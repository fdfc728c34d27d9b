"""python -m site_client.doctor.network FILE writes one JSON line for each result, on standard output."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from site_client.check_result import carry_out, to_json_line
from site_client.config import load
from site_client.doctor.network.checks import checks
from site_client.logging_setup import log_to_stderr

log_to_stderr(tracebacks=False)
for result in carry_out(checks(load(Path(sys.argv[1])), lambda: datetime.now(UTC))):
    print(to_json_line(result), flush=True)
