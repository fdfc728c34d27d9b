"""The one set-up of logs: JSON on standard error, and a traceback only where no code reads DICOM."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import structlog
from site_client.logging_setup import log_to_stderr
log_to_stderr(tracebacks=sys.argv[1] == "with")
log = structlog.get_logger()
log.info("step done", asked="train")
try:
    raise ValueError("DOE^JANE")
except ValueError as error:
    log.error("step crashed", kind=type(error).__name__, exc_info=True)
    log.exception("step crashed")
"""


@pytest.mark.parametrize("tracebacks", ["with", "without"])
def test_an_event_is_a_line_of_json_and_its_traceback_is_there_only_if_asked_for(tracebacks: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, tracebacks], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(event["event"], event["level"]) for event in events] == [
        ("step done", "info"),
        ("step crashed", "error"),
        ("step crashed", "error"),
    ]
    assert events[0]["asked"] == "train"
    assert all(event["timestamp"].endswith("Z") for event in events)
    assert ["DOE^JANE" in json.dumps(event) for event in events] == [False, *[tracebacks == "with"] * 2]
