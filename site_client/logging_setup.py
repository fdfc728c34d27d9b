"""The one set-up of logs for agent, trainer and commands: one line an event, on standard error.

An event is a constant text in lower case and past tense; facts are fields. A terminal gets readable lines, everything
else gets JSON, with UTC times.

Code that reads DICOM logs without tracebacks, because the text of an exception there may quote a patient's value. Such
code logs the exception's type at most.
"""

import sys
from typing import Final

import structlog
from structlog.typing import EventDict, WrappedLogger

_STAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)


def log_to_stderr(*, tracebacks: bool) -> None:
    """Configure structlog for this process.

    Args:
        tracebacks: whether `exc_info` becomes a traceback in the log. False in every process that reads DICOM, where
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
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _without_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # Dropped, not rendered: JSONRenderer would otherwise print its repr, which holds the exception's text.
    event.pop("exc_info", None)
    return event
