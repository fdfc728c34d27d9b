"""The page of people: one's own password and sessions; for an administrator also all people and theirs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from aggregator.dashboard.forms import own_form
from aggregator.dashboard.rendering import page
from aggregator.dashboard.sessions import SALT_BYTES, expect_password
from aggregator.errors import AggregatorError
from aggregator.states import Role
from aggregator.store import Change, people, record, session_rows

router = APIRouter()
KEY_DIGITS = 16  # of a session's row, in addresses
Password = Annotated[str, Form(max_length=people.PASSWORD_CHARACTERS_MAX)]


@router.get("/people")
def show_people(request: Request) -> Response:
    """Show one's own sessions, and to an administrator all people with theirs."""
    app, visitor = request.app.state.context, request.state.visitor
    with app.store.read() as session:
        rows = session_rows.in_force(session, app.clock())
        everyone = people.administrators(session) if visitor.role is Role.ADMIN else []
    shown = [row for row in rows if visitor.role is Role.ADMIN or row.name == visitor.name]
    sessions = [
        {
            "name": row.name,
            "address": row.address,
            "began_at": row.began_at,
            "ends_at": row.ends_at,
            "is_own": row.token_hash == visitor.token_hash,
            "path": f"/people/sessions/{row.token_hash.hex()[:KEY_DIGITS]}",
        }
        for row in shown
    ]
    return page(request, "people.html", everyone=everyone, sessions=sessions, here="people", still=True)


@router.post("/people/password", dependencies=[Depends(own_form)])
def change_own_password(request: Request, password: Password, chosen: Password, repeated: Password) -> Response:
    """Give oneself another password. All other sessions of this person end, and this one is replaced.

    Raises:
        HTTPException: 403 for a wrong password, 409 for a new one that is refused.
    """
    app, name = request.app.state.context, request.state.visitor.name
    expect_password(request, password)
    if chosen != repeated:
        raise HTTPException(409, "Expected the new password twice, got two texts; the old one stays.")
    change = Change(app.clock(), f"person:{name}", f"administrator:{name}", "at the dashboard")
    try:
        with app.store.write() as session:
            people.change_password(session, name, chosen, app.random(SALT_BYTES), change)
    except AggregatorError as error:
        raise HTTPException(409, f"{error}; the old one stays.") from None
    reply = RedirectResponse("/people", status_code=303)
    request.app.state.sessions.begin(request, reply, name)
    return reply


@router.post("/people/sessions/{key}", dependencies=[Depends(own_form)])
def end_session(request: Request, key: str) -> Response:
    """End a session: one's own, or as an administrator that of any person.

    Raises:
        HTTPException: 404 when there is none that this person may end.
    """
    app, visitor = request.app.state.context, request.state.visitor
    now = app.clock()
    with app.store.write() as session:
        ended = None
        for row in session_rows.in_force(session, now):
            may_end = visitor.role is Role.ADMIN or row.name == visitor.name
            if may_end and row.token_hash.hex()[:KEY_DIGITS] == key:
                session_rows.end(session, row.token_hash)
                why = f"begun {row.began_at:%Y-%m-%d %H:%M} UTC from {row.address}"
                change = Change(now, f"person:{visitor.name}", f"administrator:{row.name}", why)
                record(session, change, None, "session ended")
                ended = row.name
    if ended is None:
        raise HTTPException(404, "There is no such session; it may have ended.")
    reply = RedirectResponse("/people", status_code=303)
    request.app.state.outcomes.leave(request, reply, "/people", f"A session of {ended} has ended.")
    return reply
