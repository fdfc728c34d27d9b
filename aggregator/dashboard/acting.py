"""Pages that change something: each act is confirmed on a page of its own, and done by the functions of the commands.

The store's audit names the person. What another process has changed meanwhile is refused as on the command line.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from federation.errors import FederationError

from aggregator.context import AppContext
from aggregator.dashboard import acts
from aggregator.dashboard.forms import acting, own_form
from aggregator.dashboard.rendering import page
from aggregator.dashboard.site_page import SitePage, site_page
from aggregator.errors import AggregatorError, NotFound
from aggregator.runs import lifecycle
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.states import RoundState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Run

router = APIRouter(dependencies=[Depends(acting)])
WHY_CHARACTERS_MAX = 200
Why = Annotated[str, Form(max_length=WHY_CHARACTERS_MAX)]

RUN_FUNCTIONS: Final[dict[str, Callable[..., None]]] = {
    "pause": lifecycle.pause,
    "resume": lifecycle.resume,
    "close-now": lifecycle.close_now,
    "abort": lifecycle.abort,
}


@router.get("/sites/{name}/{verb}")
def confirm_site_act(request: Request, name: str, verb: str) -> Response:
    """Ask for confirmation of an act on a site."""
    site = _site(request, name)
    return _confirm(request, _site_act(site, verb), name, f"/sites/{name}", site=site, here="sites")


@router.post("/sites/{name}/{verb}", dependencies=[Depends(own_form)])
def act_on_site(
    request: Request,
    name: str,
    verb: str,
    why: Why = "",
    typed: Annotated[str, Form()] = "",
    words: Annotated[str, Form()] = "",
    compared: Annotated[bool, Form()] = False,
) -> Response:
    """Do it.

    Raises:
        HTTPException: 409 when the site's state does not allow it any more, or the confirmation is not complete.
    """
    site = _site(request, name)
    act = _site_act(site, verb)
    _expect_typed(act, name, typed)
    if act is acts.APPROVE and not compared:
        raise HTTPException(409, "Approve a site only after its six words were compared by telephone.")
    with_why = (name, why.strip()) if why.strip() else (name,)
    desk = _enrolment(request)

    def carry_out() -> None:
        match act.verb:
            case "approve":  # the words go along: a host with other keys is not approved by them
                desk.approve(name, words)
            case "suspend":
                desk.suspend(*with_why)
            case "resume":
                desk.resume(*with_why)
            case _:
                desk.revoke(name)

    return _do(request, carry_out, act.outcome.format(name=name), f"/sites/{name}" if site.view else "/sites")


@router.get("/runs/{hex_id}/{verb}")
def confirm_run_act(request: Request, hex_id: str, verb: str) -> Response:
    """Ask for confirmation of an act on a run."""
    run, act = _run_act(request, hex_id, verb)
    return _confirm(request, act, run.name, f"/runs/{hex_id}", site=None, here="runs")


@router.post("/runs/{hex_id}/{verb}", dependencies=[Depends(own_form)])
def act_on_run(request: Request, hex_id: str, verb: str, why: Why = "", typed: Annotated[str, Form()] = "") -> Response:
    """Do it.

    Raises:
        HTTPException: 409 when the run's state does not allow it any more, or the confirmation is not complete.
    """
    run, act = _run_act(request, hex_id, verb)
    _expect_typed(act, run.name, typed)
    reason = {"why": why.strip()} if why.strip() else {}

    def carry_out() -> None:
        RUN_FUNCTIONS[act.verb](request.app.state.context, run.run_id, actor=_actor(request), **reason)

    return _do(request, carry_out, act.outcome.format(name=run.name), f"/runs/{hex_id}")


@router.get("/invite")
def invite(request: Request, name: str = "") -> Response:
    """Ask for the name of the hospital to invite."""
    return page(request, "invite.html", name=name, token=None, here="sites", still=True)


@router.post("/invite", dependencies=[Depends(own_form)])
def make_invitation(request: Request, name: Annotated[str, Form(max_length=64)]) -> Response:
    """Show a one-time token. It is shown once, and exists nowhere else."""
    desk = _enrolment(request)
    try:
        token = desk.invite(name.strip())
    except (AggregatorError, FederationError) as error:
        raise HTTPException(409, _sentence(error)) from None
    hours = desk.settings.invitation_hours
    return page(request, "invite.html", name=token.site, token=token.text(), hours=hours, here="sites", still=True)


def _confirm(request: Request, act: acts.Act, name: str, back: str, **context: Any) -> Response:
    return page(request, "confirm.html", act=act, name=name, back=back, still=True, **context)


def _do(request: Request, carry_out: Callable[[], None], outcome: str, back: str) -> Response:
    try:
        carry_out()
    except (AggregatorError, FederationError) as error:
        raise HTTPException(409, _sentence(error)) from None
    request.session["outcome"] = f"{request.app.state.context.clock():%H:%M} UTC: {outcome}"
    return RedirectResponse(back, status_code=303)


def _expect_typed(act: acts.Act, name: str, typed: str) -> None:
    if act.typed and typed.strip() != name:
        raise HTTPException(409, f"Expected the name {name}, typed to confirm, got another text; nothing was done.")


def _site(request: Request, name: str) -> SitePage:
    app = request.app.state.context
    with app.store.read() as session:
        try:
            return site_page(app, session, name, request.state.role)
        except NotFound as error:
            raise HTTPException(404, str(error)) from None


def _site_act(site: SitePage, verb: str) -> acts.Act:
    for act in site.acts:
        if act.verb == verb:
            return act
    raise HTTPException(409, f"This does not fit {site.name} as it is now; nothing was done.")


def _run_act(request: Request, hex_id: str, verb: str) -> tuple[Run, acts.Act]:
    with request.app.state.context.store.read() as session:
        try:
            run = run_rows.get(session, bytes.fromhex(hex_id))
        except (NotFound, ValueError):
            raise HTTPException(404, "There is no such run.") from None
        row = round_rows.newest(session, run.run_id)
    in_training = row is not None and row.state is RoundState.TRAINING
    for act in acts.run_acts(run.state, in_training=in_training):
        if act.verb == verb:
            return run, act
    raise HTTPException(409, f"This does not fit the run {run.name}, which is {run.state}; nothing was done.")


def _enrolment(request: Request) -> EnrolmentService:
    app: AppContext = request.app.state.context
    try:
        authority = Authority(app.settings.state.folder / "ca", app.clock)
    except AggregatorError as error:
        raise HTTPException(409, _sentence(error)) from None
    return EnrolmentService(app.store, authority, app.settings.enrolment, app.clock, app.random, actor=_actor(request))


def _actor(request: Request) -> str:
    return f"person:{request.session['name']}"


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
