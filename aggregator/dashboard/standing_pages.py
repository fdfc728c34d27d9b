"""Pages on what stands: the models of a run, its privacy, and the health of the aggregator."""

import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from federation.forecast import noise_words
from sqlalchemy.orm import Session

from aggregator.alerts.watch import advice_of
from aggregator.dashboard.conditions import clock_notices
from aggregator.dashboard.model_views import model_views
from aggregator.dashboard.rendering import page
from aggregator.dashboard.visibility import UNSEEN
from aggregator.errors import NotFound
from aggregator.runs.forecast_words import NOT_NOISED
from aggregator.runs.plans import plan_of
from aggregator.runs.privacy_status import privacy_status
from aggregator.sites.roster import roster_notices
from aggregator.store import alert_rows, audit_chain, run_rows
from aggregator.store.tables import Run

router = APIRouter()
MODELS_A_PAGE = 100
Checks = Callable[[], Sequence[tuple[str, str]]]  # name and fault of each; empty for none


@router.get("/models")
def models(
    request: Request,
    run: Annotated[str, Query(max_length=32)] = "",
    before: Annotated[int | None, Query(ge=1, le=2**31)] = None,
) -> Response:
    """Show the models of a run, the newest first; of the current run where none is named.

    Raises:
        HTTPException: 404 when there is no such run.
    """
    with request.app.state.context.store.read() as session:
        shown = _run(session, run)
        if shown is None:
            return page(request, "models.html", run=None, models=(), here="models")
        newest = run_rows.newest_model(session, shown.run_id).digest
        rows = model_views(session, shown, newest, MODELS_A_PAGE, before)
        plan = plan_of(shown)
    older = rows[-1].number if rows and rows[-1].number > 0 else None
    return page(
        request,
        "models.html",
        run=shown,
        run_hex=shown.run_id.hex(),
        plan=plan,
        models=rows,
        older=older,
        here="models",
    )


@router.get("/privacy")
def privacy(request: Request, run: Annotated[str, Query(max_length=32)] = "") -> Response:
    """Show what a run promises about a patient and a site, and what it has spent of it.

    Raises:
        HTTPException: 404 when there is no such run.
    """
    with request.app.state.context.store.read() as session:
        shown = _run(session, run)
        status = None if shown is None else privacy_status(session, shown)
    plan = None if shown is None else plan_of(shown)
    return page(
        request,
        "privacy.html",
        run=shown,
        run_hex="" if shown is None else shown.run_id.hex(),
        plan=plan,
        privacy=status,
        noise_words=NOT_NOISED if status is None else noise_words(status.noise.over_signal),
        unseen=UNSEEN,
        here="privacy",
    )


@router.get("/health")
def health(request: Request) -> Response:
    """Show whether the aggregator works, the alerts that hold, and what awaits a person."""
    app, state = request.app.state.context, request.app.state
    now, folder = app.clock(), app.settings.state.folder
    checks = [] if state.checks is None else list(state.checks())
    with app.store.read() as session:
        alerts = [(row, advice_of(row.kind)) for row in alert_rows.all_rows(session)]
        notices = clock_notices(session, now) + roster_notices(session, folder, now)
        head = audit_chain.head(session)
    ways = {"mail": app.settings.alerts.mail_to, "webhook": app.settings.alerts.webhook}
    return page(
        request,
        "health.html",
        checks=checks,
        alerts=alerts,
        notices=notices,
        head=head,
        disk=shutil.disk_usage(folder),
        database="PostgreSQL" if app.store.is_shared else "SQLite",
        version=version("hemofed"),
        told_by=[name for name, target in ways.items() if target],
        here="health",
        moving=True,
    )


def _run(session: Session, hex_id: str) -> Run | None:
    """Return a run by its id; without one the current run, None before the first."""
    if not hex_id:
        return run_rows.current(session)
    try:
        return run_rows.get(session, bytes.fromhex(hex_id))
    except (NotFound, ValueError):
        raise HTTPException(404, "There is no such run.") from None
