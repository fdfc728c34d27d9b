"""The one set-up of logs for agent, trainer and commands: one line an event, on standard error.

An event is a constant text in lower case and past tense; facts are fields. A terminal gets readable lines, everything
else gets JSON, with UTC times.

In the journal each line begins with its priority, sd-daemon(3): `journalctl -p warning` shows what needs a look.

Code that reads DICOM logs without tracebacks, because the text of an exception there may quote a patient's value. Such
code logs the exception's type at most.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

_PRIORITIES: Final = {"critical": "<2>", "error": "<3>", "warning": "<4>", "info": "<6>", "debug": "<7>"}
_STAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)


def log_to_stderr(*, tracebacks: bool) -> None:
    """Configure structlog for this process.

    Args:
        tracebacks: Whether `exc_info` becomes a traceback in the log. False in every process that reads DICOM, where
            `exc_info` is dropped.
    """
    on_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _STAMP,
            structlog.processors.format_exc_info if tracebacks else _without_traceback,
            # structlog's own choice is rich's traceback, if rich is installed. It prints local variables.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if on_terminal
            else structlog.processors.JSONRenderer(),
            *([_with_priority] if in_journal() else []),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def in_journal(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is the journal: JOURNAL_STREAM, systemd.exec(5), names its device and inode."""
    try:
        status = os.fstat(sys.stderr.fileno())
    # Standard error may be closed, or no file at all.
    except (OSError, ValueError, AttributeError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def priority(level: str) -> str:
    """Return what a line of this level begins with on standard error; empty outside the journal."""
    return _PRIORITIES[level] if in_journal() else ""


def _with_priority(_logger: WrappedLogger, method: str, line: Any) -> str:
    return _PRIORITIES.get(method, "<6>") + str(line)  # the renderer before it has made a line of the event


def _without_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # Dropped, not rendered: JSONRenderer would otherwise print its repr, which holds the exception's text.
    event.pop("exc_info", None)
    return event
