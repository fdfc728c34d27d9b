"""The one set-up of logs: JSON on standard error, and a traceback only where no code reads DICOM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PRIORITIES = """
import structlog
from site_client.logging_setup import log_to_stderr
log_to_stderr(tracebacks=False)
for level in ("info", "warning", "error"):
    structlog.get_logger().log({"info": 20, "warning": 30, "error": 40}[level], "step done")
"""
REFUSAL = """
import sys
from site_client.cli import main
main(["trainer", "--config", sys.argv[1] + "/none.toml"])
"""
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


@pytest.mark.parametrize("script", [PRIORITIES, REFUSAL], ids=["events", "a refusal of a service"])
@pytest.mark.parametrize("stream", ["the journal", "another", "none"])
def test_a_line_begins_with_its_priority_in_the_journal_and_nowhere_else(
    tmp_path: Path, stream: str, script: str
) -> None:
    with (tmp_path / "stderr").open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        inode = status.st_ino + (stream == "another")
        environment = {} if stream == "none" else {"JOURNAL_STREAM": f"{status.st_dev}:{inode}"}
        inherited = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
        command = [sys.executable, "-c", script, str(tmp_path)]
        subprocess.run(command, stderr=stderr, env=inherited | environment, check=False)
    lines = (tmp_path / "stderr").read_text().splitlines()
    expected = ["<6>{", "<4>{", "<3>{"] if script is PRIORITIES else ["<3>hemofed-site: "]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start if stream == "the journal" else start[3:])
