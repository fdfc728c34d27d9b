"""How the aggregator logs: one line an event on standard error, a constant message, facts as fields.

Messages are lower case and say in the past tense what happened. No line holds a key, a weight or a token. Standard
output stays free for what a command prints.
"""

import sys
from typing import TextIO

import structlog


def configure_logging(stream: TextIO | None = None) -> None:
    """Log JSON, or colored text on a terminal; `log.exception` adds the traceback.

    Args:
        stream: Where the lines go; standard error when None.
    """
    stream = stream or sys.stderr
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
