"""The log of the aggregator: one line an event on standard error, a constant message, facts as fields.

Messages are lower case and say in the past tense what happened. No line holds a key, a weight or a token. Standard
output stays free for what a command prints.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

import structlog


def configure_logging(stream: TextIO | None = None) -> None:
    """Log JSON, or colored text on a terminal; `log.exception` adds the traceback.

    Args:
        stream: Where the lines go; standard error when None.
    """
    stream = stream or sys.stderr
    # Libraries write to the standard library's logging, which would write text of its own kind between our lines.
    logging.basicConfig(handlers=[_ToStructlog(logging.WARNING)], force=True)
    render: structlog.typing.Processor
    if stream.isatty():
        # structlog's own choice is rich's traceback, if rich is installed. It prints local variables: keys, weights.
        render = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        render = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without it the JSON holds "exc_info": true and no traceback. dict_tracebacks would add local variables.
            *([] if stream.isatty() else [structlog.processors.format_exc_info]),
            render,
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )


def limit_repetition(lines_per_minute: int) -> None:
    """Write at most so many lines a minute of each event: strangers cause some of them, and must not fill a disk."""
    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[RepetitionLimit(lines_per_minute), *processors])


class RepetitionLimit:
    """A structlog processor. The first line of an event's next minute says how many lines were `left_out`."""

    def __init__(self, lines_per_minute: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._allowed, self._monotonic = lines_per_minute, monotonic
        self._lock = threading.Lock()
        # By event: when its minute began, and the lines in it. Events are constants of the source, so they are few.
        self._minutes: dict[str, tuple[float, int]] = {}

    def __call__(self, _logger: object, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Return the fields of the line.

        Raises:
            structlog.DropEvent: When there were too many of its event.
        """
        event, now = str(fields.get("event")), self._monotonic()
        with self._lock:
            began, count = self._minutes.get(event, (now, 0))
            left_out = 0
            if now - began >= 60:
                began, left_out, count = now, max(0, count - self._allowed), 0
            self._minutes[event] = (began, count + 1)
        if count >= self._allowed:
            raise structlog.DropEvent
        return {**fields, "left_out": left_out} if left_out else fields


class _ToStructlog(logging.Handler):
    """Writes a library's warning as one of our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.warning("library warned", library=record.name, text=record.getMessage(), exc_info=record.exc_info)
