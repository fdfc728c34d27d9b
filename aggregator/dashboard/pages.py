"""The pages. Each reads one snapshot of the store and renders one template."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import run_views
from aggregator.dashboard.acts import run_acts
from aggregator.dashboard.charts import line_chart
from aggregator.dashboard.conditions import clock_notices
from aggregator.dashboard.now_view import awaited_because, now_view
from aggregator.dashboard.rendering import page
from aggregator.dashboard.round_page import round_page
from aggregator.dashboard.site_page import site_page
from aggregator.dashboard.site_views import SiteReader
from aggregator.errors import NotFound
from aggregator.sites.roster import roster_notices
from aggregator.states import Role, RoundState
from aggregator.store import audit_chain, fault_rows, people, round_lines, round_rows, run_rows, site_lines
from aggregator.store.round_lines import SeatOrder
from aggregator.store.site_lines import SiteOrder

router = APIRouter()
AUDIT_ROWS = 100
SITES_A_PAGE = 100
RUNS_A_PAGE = 100
NEWEST_ROUNDS = 10  # of the first screen
ID_MAX = 2**63 - 1  # of a row, in SQLite and in PostgreSQL


@router.get("/")
def overview(request: Request) -> Response:
    """Show the run in progress, or else the last one: first what is going on and what comes next, then the sites."""
    app = request.app.state.context
    cannot_write = bool(request.app.state.write_probe.fault())
    # One snapshot: the run and the sites on a page are of one moment.
    with app.store.read() as session:
        run = run_rows.current(session)
        view = None if run is None else run_views.run_view(app, session, run, NEWEST_ROUNDS)
        reader = SiteReader.of(app, session, cannot_write=cannot_write)
        shown = [reader.view(line) for line in site_lines.lines(session)]
        now = None if run is None else now_view(app, session, run, shown)
        notices, approvals = _notices(app, session), site_lines.awaiting_approval(session)
    moving = view is not None and view.moving
    return page(
        request,
        "overview.html",
        run=view,
        now_view=now,
        sites=shown,
        charts=_charts(view),
        notices=notices,
        approvals=approvals,
        here="overview",
        moving=moving,
    )


PageNumber = Annotated[int, Query(ge=1, le=100_000, alias="page")]
Search = Annotated[str, Query(max_length=32, alias="q")]


@router.get("/sites")
def site_list(
    request: Request, number: PageNumber = 1, search: Search = "", order: Annotated[SiteOrder, Query()] = SiteOrder.NAME
) -> Response:
    """Show a page of the sites in some order, those that a search finds, and every name that is invited."""
    app, search = request.app.state.context, search.strip().lower()
    cannot_write = bool(request.app.state.write_probe.fault())
    begin = (number - 1) * SITES_A_PAGE
    with app.store.read() as session:
        reader = SiteReader.of(app, session, cannot_write=cannot_write)
        lines = site_lines.lines(session, search, order, SITES_A_PAGE, begin)
        count = site_lines.count(session, search)
        invited, approvals = site_lines.invited(session), site_lines.awaiting_approval(session)
        notices = _notices(app, session)
    return page(
        request,
        "sites.html",
        sites=[reader.view(line) for line in lines],
        count=count,
        number=number,
        search=search,
        order=order,
        is_last=begin + SITES_A_PAGE >= count,
        invited=invited,
        approvals=approvals,
        notices=notices,
        here="sites",
    )


@router.get("/sites/{name}")
def one_site(request: Request, name: str) -> Response:
    """Show one site.

    Raises:
        HTTPException: 404 when there is no such site.
    """
    app = request.app.state.context
    cannot_write = bool(request.app.state.write_probe.fault())
    with app.store.read() as session:
        try:
            shown = site_page(app, session, name, request.state.role, cannot_write=cannot_write)
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
    situation = None if shown.view is None else awaited_because(shown.view)
    return page(request, "site.html", site=shown, situation=situation, here="sites")


@router.get("/runs")
def run_list(request: Request, number: PageNumber = 1) -> Response:
    """Show a page of the runs in one line each, the newest first."""
    begin = (number - 1) * RUNS_A_PAGE
    with request.app.state.context.store.read() as session:
        lines = round_lines.page_of_runs(session, RUNS_A_PAGE + 1, begin)  # one more, to see whether it is the last
    rows = [run_views.run_line(line) for line in lines[:RUNS_A_PAGE]]
    return page(request, "runs.html", runs=rows, number=number, is_last=len(lines) <= RUNS_A_PAGE, here="runs")


@router.get("/runs/{hex_id}")
def run_page(request: Request, hex_id: str, before: Annotated[int | None, Query(ge=1)] = None) -> Response:
    """Show one run round by round, the newest first; `before` is the round that the page before ended with.

    Raises:
        HTTPException: 404 when there is no such run.
    """
    app = request.app.state.context
    with app.store.read() as session:
        try:
            run = run_rows.get(session, bytes.fromhex(hex_id))
        except (NotFound, ValueError):
            raise HTTPException(404, "There is no such run.") from None
        view = run_views.run_view(app, session, run, before=before)
        row = round_rows.newest(session, run.run_id)
        acts = run_acts(run.state, in_training=row is not None and row.state is RoundState.TRAINING)
    return page(request, "run.html", run=view, acts=acts, charts=_charts(view), here="runs", moving=view.moving)


@router.get("/runs/{hex_id}/rounds/{round_number}")
def one_round(
    request: Request,
    hex_id: str,
    round_number: int,
    number: PageNumber = 1,
    search: Search = "",
    order: Annotated[SeatOrder, Query()] = SeatOrder.SITE,
) -> Response:
    """Show who took part in a round, and what the aggregator could see of it.

    Raises:
        HTTPException: 404 when there is no such round.
    """
    app, search = request.app.state.context, search.strip().lower()
    begin = (number - 1) * SITES_A_PAGE
    with app.store.read() as session:
        try:
            run = run_rows.get(session, bytes.fromhex(hex_id))
            row = round_rows.get(session, run.run_id, min(round_number, ID_MAX))
        except (NotFound, ValueError):
            raise HTTPException(404, "There is no such round.") from None
        shown = round_page(app, session, run, row, search, order, SITES_A_PAGE, begin)
    return page(
        request,
        "round.html",
        run_name=run.name,
        run_path=f"/runs/{run.run_id.hex()}",
        round=shown,
        number=number,
        search=search,
        order=order,
        here="runs",
        moving=not shown.over,
    )


def auditing(request: Request) -> None:
    """Let only those roles pass that may read who did what.

    Raises:
        HTTPException: 403 for others.
    """
    if request.state.role is Role.VIEWER:
        raise HTTPException(403, "Your role, viewer, does not show this; ask an administrator for the role auditor.")


@router.get("/faults/{fault_id}/evidence", dependencies=[Depends(auditing)])
def evidence(request: Request, fault_id: int) -> Response:
    """Return the evidence of a fault as its members signed it: a serialized BadShares or BadDealing of secagg.proto.

    Raises:
        HTTPException: 404 when there is none.
    """
    if not 0 < fault_id <= ID_MAX:
        raise HTTPException(404, "There is no such evidence.")
    with request.app.state.context.store.read() as session:
        try:
            data = fault_rows.evidence(session, fault_id)
        except NotFound:
            raise HTTPException(404, "There is no such evidence.") from None
    name = f'attachment; filename="fault-{fault_id}.bin"'
    return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": name})


@router.get("/audit", dependencies=[Depends(auditing)])
def audit(request: Request, before: Annotated[int | None, Query(ge=1)] = None) -> Response:
    """Show rows of the audit trail, newest first; `before` is the id of the row that the page before ended with.

    Raises:
        HTTPException: 400 when no row can have that id.
    """
    if before is not None and before > ID_MAX:
        raise HTTPException(400, "There is no such row.")
    with request.app.state.context.store.read() as session:
        rows = people.audit_trail(session, limit=AUDIT_ROWS, before_id=before)
        head = audit_chain.head(session)
    # Paged by id and not by number of rows: rows that are added meanwhile move nothing.
    older = rows[-1].id if len(rows) == AUDIT_ROWS else None
    return page(request, "audit.html", rows=rows, older=older, newest=before is None, head=head, here="audit")


def _notices(app: AppContext, session: Session) -> list[str]:
    now = app.clock()
    return clock_notices(session, now) + roster_notices(session, app.settings.state.folder, now)


def _charts(run: run_views.RunView | None) -> dict[str, str]:
    if run is None:
        return {}
    unit = "slice" if run.privacy is None else "patient"
    return {
        "auc": line_chart("AUC", f"AUC by {unit} (0.5: chance)", list(run.auc), low=0.4, high=1.0),
        "loss": line_chart("Loss", "loss in nats", list(run.losses)),
    }
