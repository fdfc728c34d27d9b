"""Templates, and how the pages write times, durations, sizes and digests."""

import re
from datetime import datetime
from functools import partial
from pathlib import Path

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from markupsafe import Markup, escape

from aggregator.dashboard.forms import may_act
from aggregator.units import duration, size

TEMPLATES = Jinja2Templates(directory=Path(__file__).resolve().parent / "templates")


def page(request: Request, template: str, status_code: int = 200, **context: object) -> Response:
    """Render a template; every page shows the time it was made and the administrator's name.

    Args:
        request: The request that the page answers.
        template: Its file name.
        status_code: Of the answer.
        context: The template's variables.
    """
    state, visitor = request.app.state, getattr(request.state, "visitor", None)  # none before the log-in
    role = None if visitor is None else visitor.role
    shared = {"now": state.context.clock(), "who": visitor and visitor.name, "role": role, "may_act": may_act(role)}
    shared["write_fault"] = state.write_probe.fault()
    shared["form_token"] = partial(state.forms.of, visitor)  # called with the address that the form is sent to
    shared["path"] = request.url.path
    shared["outcome"] = outcome = state.outcomes.of(request)
    response = TEMPLATES.TemplateResponse(request, template, {**shared, **context}, status_code=status_code)
    if outcome:
        state.outcomes.said(request, response)
    return response


def short(digest: bytes | None) -> str:
    """Write the first digits of a digest."""
    return "–" if not digest else digest.hex()[:12]


def clock_time(moment: datetime) -> str:
    """Write a time in UTC, to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def figure(value: float | None, digits: int = 3) -> str:
    """Write a metric, or a dash when there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def short_ids(text: str) -> str:
    """Cut every run id and process id in a text to its first digits; the audit trail holds them in full."""
    return _LONG_HEX.sub(lambda match: match[0][:6] + "…", text)


def with_code(text: str) -> Markup:
    """Escape a sentence, and set the commands that stand in it between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped on this line


_CODE = re.compile(r"`([^`]+)`")

# Run ids have 32 digits, process ids 16; the first six tell them apart for a reader.
_LONG_HEX = re.compile(r"[0-9a-f]{12,}")

# Templates call them by their own names.
for _filter in (duration, size, short, clock_time, figure, short_ids, with_code):
    TEMPLATES.env.filters[_filter.__name__] = _filter
