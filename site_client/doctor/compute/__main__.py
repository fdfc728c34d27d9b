"""python -m site_client.doctor.compute FILE [--quick] writes one JSON line for each result, on standard output.

Standard input holds the newest plan, or nothing: this user may not read the agent's folder.
"""

import sys
from pathlib import Path

from federation.plan import TrainingPlan

from site_client.check_result import carry_out, to_json_line
from site_client.config import load
from site_client.doctor.compute.checks import checks
from site_client.logging_setup import log_to_stderr

log_to_stderr(tracebacks=False)
data = sys.stdin.buffer.read()
plan = TrainingPlan.from_bytes(data) if data else None
for result in carry_out(checks(load(Path(sys.argv[1])), plan, quick="--quick" in sys.argv[2:])):
    print(to_json_line(result), flush=True)
