"""Pages that change something: each act is confirmed on a page of its own, and done by the functions of the commands.

The store's audit names the person. What another process has changed meanwhile is refused as on the command line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from federation.errors import FederationError
from federation.limits import is_site_name

from aggregator.context import AppContext
from aggregator.dashboard import acts
from aggregator.dashboard.forms import acting, own_form
from aggregator.dashboard.rendering import page
from aggregator.dashboard.sessions import expect_password
from aggregator.dashboard.site_page import SitePage, site_page
from aggregator.errors import AggregatorError, NotFound
from aggregator.runs import lifecycle
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.states import RoundState
from aggregator.store import people, round_rows, run_rows, site_rows
from aggregator.store.tables import Run

router = APIRouter(dependencies=[Depends(acting)])
WHY_CHARACTERS_MAX = 200
FIELD_CHARACTERS_MAX = 128

RUN_FUNCTIONS: Final[dict[str, Callable[..., None]]] = {
    "pause": lifecycle.pause,
    "resume": lifecycle.resume,
    "abort": lifecycle.abort,
}


@dataclass(frozen=True)
class Confirmation:
    """The fields of a form that confirms an act.

    Attributes:
        why: For the audit.
        typed: The name, for acts that nothing takes back.
        password: The person's, for the same acts.
        seen: How the thing was when the form was made.
    """

    why: Annotated[str, Form(max_length=WHY_CHARACTERS_MAX)] = ""
    typed: Annotated[str, Form(max_length=FIELD_CHARACTERS_MAX)] = ""
    password: Annotated[str, Form(max_length=people.PASSWORD_CHARACTERS_MAX)] = ""
    seen: Annotated[str, Form(max_length=FIELD_CHARACTERS_MAX)] = ""

    def expect(self, request: Request, act: acts.Act, name: str, seen: str) -> None:
        """Let an act pass only as it was confirmed, and on the thing as it was shown.

        Raises:
            HTTPException: 409 for another state or another name; see `expect_password`.
        """
        if self.seen != seen:
            raise HTTPException(409, f"{name} has changed since this form was made; nothing was done. Look again.")
        # A browser shows several spaces as one, so a person types one.
        if act.typed and self.typed.split() != name.split():
            raise HTTPException(409, f"Expected the name {name}, typed to confirm, got another text; nothing was done.")
        if act.typed:
            expect_password(request, self.password)

    @property
    def reason(self) -> str:
        """The reason in one line.

        Raises:
            HTTPException: 409 for characters that do not print: they could forge lines where the audit is read.
        """
        words = " ".join(self.why.split())
        if not words.isprintable():
            raise HTTPException(409, "Expected a reason in characters that print, got others; nothing was done.")
        return words


Confirmed = Annotated[Confirmation, Depends()]


@router.get("/sites/{name}/{verb}")
def confirm_site_act(request: Request, name: str, verb: str) -> Response:
    """Ask for confirmation of an act on a site."""
    site = _site(request, name)
    act = _site_act(site, verb)
    return _confirm(request, act, name, f"/sites/{name}", site.seen, site=site, here="sites")


@router.post("/sites/{name}/{verb}", dependencies=[Depends(own_form)])
def act_on_site(
    request: Request,
    name: str,
    verb: str,
    form: Confirmed,
    words: Annotated[str, Form(max_length=FIELD_CHARACTERS_MAX)] = "",
    compared: Annotated[bool, Form()] = False,
) -> Response:
    """Do it.

    Raises:
        HTTPException: 409 when the site's state does not allow it any more, or the confirmation is not complete.
    """
    site = _site(request, name)
    act = _site_act(site, verb)
    form.expect(request, act, name, site.seen)
    if act is acts.APPROVE and not compared:
        raise HTTPException(409, "Approve a site only after its six words were compared by telephone.")
    with_why = (name, form.reason) if form.reason else (name,)
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
    run, act, seen = _run_act(request, hex_id, verb)
    return _confirm(request, act, run.name, f"/runs/{hex_id}", seen, site=None, here="runs")


@router.post("/runs/{hex_id}/{verb}", dependencies=[Depends(own_form)])
def act_on_run(request: Request, hex_id: str, verb: str, form: Confirmed) -> Response:
    """Do it.

    Raises:
        HTTPException: 409 when the run's state does not allow it any more, or the confirmation is not complete.
    """
    run, act, seen = _run_act(request, hex_id, verb)
    form.expect(request, act, run.name, seen)
    details = {"why": form.reason} if form.reason else {}

    def carry_out() -> None:
        context, run_id, actor = request.app.state.context, run.run_id, _actor(request)
        if act is acts.CLOSE_NOW:  # the round goes along: a driver may have begun the next one a moment ago
            lifecycle.close_now(context, run_id, actor=actor, round_number=int(seen), **details)
        else:
            RUN_FUNCTIONS[act.verb](context, run_id, actor=actor, **details)

    return _do(request, carry_out, act.outcome.format(name=run.name), f"/runs/{hex_id}")


@router.get("/invite")
def invite(request: Request, name: Annotated[str, Query(max_length=64)] = "") -> Response:
    """Ask for the name of the hospital to invite."""
    return page(request, "invite.html", name=name, token=None, here="sites", still=True)


@router.post("/invite", dependencies=[Depends(own_form)])
def make_invitation(
    request: Request, name: Annotated[str, Form(max_length=64)], again: Annotated[bool, Form()] = False
) -> Response:
    """Show a one-time token. It is shown once, and exists nowhere else.

    Raises:
        HTTPException: 409 when the name has a token already that is good, unless it is to be replaced.
    """
    desk, name = _enrolment(request), name.strip()
    with desk.store.read() as session:
        held = site_rows.invitation(session, name) if is_site_name(name) else None
    if held is not None and held.used_by is None and held.expires_at > desk.clock() and not again:
        # A form that is sent twice, by a click or a reload, must not void the token that was handed over.
        return page(request, "invite.html", 409, name=name, token=None, held=held.expires_at, here="sites", still=True)
    try:
        token = desk.invite(name)
    except (AggregatorError, FederationError) as error:
        raise HTTPException(409, _sentence(error)) from None
    hours = desk.settings.invitation_hours
    return page(request, "invite.html", name=token.site, token=token.text(), hours=hours, here="sites", still=True)


def _confirm(request: Request, act: acts.Act, name: str, back: str, seen: str, **context: Any) -> Response:
    return page(request, "confirm.html", act=act, name=name, back=back, seen=seen, still=True, **context)


def _do(request: Request, carry_out: Callable[[], None], outcome: str, back: str) -> Response:
    try:
        carry_out()
    except (AggregatorError, FederationError) as error:
        raise HTTPException(409, _sentence(error)) from None
    reply = RedirectResponse(back, status_code=303)
    sentence = f"{request.app.state.context.clock():%H:%M} UTC: {outcome}"
    request.app.state.outcomes.leave(request, reply, back, sentence)
    return reply


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
    state = "invited" if site.view is None else site.view.standing
    raise HTTPException(409, f"This does not fit {site.name}, which is {state}; nothing was done.")


def _run_act(request: Request, hex_id: str, verb: str) -> tuple[Run, acts.Act, str]:
    """Return the run, the act, and what its form has to have seen."""
    with request.app.state.context.store.read() as session:
        try:
            run = run_rows.get(session, bytes.fromhex(hex_id))
        except (NotFound, ValueError):
            raise HTTPException(404, "There is no such run.") from None
        row = round_rows.newest(session, run.run_id)
    in_training = row is not None and row.state is RoundState.TRAINING
    for act in acts.run_acts(run.state, in_training=in_training):
        if act.verb == verb:
            return run, act, str(row.number) if row is not None and act is acts.CLOSE_NOW else ""
    raise HTTPException(409, f"This does not fit the run {run.name}, which is {run.state}; nothing was done.")


def _enrolment(request: Request) -> EnrolmentService:
    app: AppContext = request.app.state.context
    try:
        authority = Authority(app.settings.state.folder / "ca", app.clock)
    except AggregatorError as error:
        raise HTTPException(409, _sentence(error)) from None
    return EnrolmentService(app.store, authority, app.settings.enrolment, app.clock, app.random, actor=_actor(request))


def _actor(request: Request) -> str:
    return f"person:{request.state.visitor.name}"


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
