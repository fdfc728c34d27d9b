"""Logging in and out. Passwords are checked by `store.people`; a name under attack has to wait."""

import threading
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from aggregator.dashboard.rendering import page
from aggregator.store import people

router = APIRouter()
WRONG = "Name or password is wrong."
NAMES_MAX = 10_000


class FailedLogins:
    """Counts wrong passwords by name. In memory: a restart forgives, the waiting time is what slows guessing down."""

    def __init__(self, allowed: int, wait_s: int) -> None:
        self._allowed, self._wait = allowed, timedelta(seconds=wait_s)
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, datetime]] = {}

    def must_wait(self, name: str, now: datetime) -> bool:
        with self._lock:
            count, since = self._failures.get(name, (0, now))
            return count >= self._allowed and now - since < self._wait

    def failed(self, name: str, now: datetime) -> None:
        with self._lock:
            if len(self._failures) >= NAMES_MAX:  # somebody invents names; forgetting is safer than growing
                self._failures.clear()
            count, since = self._failures.get(name, (0, now))
            expired = now - since >= self._wait
            self._failures[name] = (1 if expired else count + 1, now)

    def succeeded(self, name: str) -> None:
        with self._lock:
            self._failures.pop(name, None)


@router.get("/login")
def show_login(request: Request) -> Response:
    return page(request, "login.html", problem=None)


@router.post("/login")
def log_in(request: Request, name: Annotated[str, Form()], password: Annotated[str, Form()]) -> Response:
    hub, logins = request.app.state.hub, request.app.state.logins
    now = hub.clock()
    if logins.must_wait(name, now):
        return page(request, "login.html", status_code=429, problem="Too many wrong passwords. Try again later.")
    with hub.store.read() as session:
        fits = people.password_fits(session, name, password)
    if not fits:
        logins.failed(name, now)
        return page(request, "login.html", status_code=401, problem=WRONG)
    logins.succeeded(name)
    request.session["name"] = name
    return RedirectResponse("/", status_code=303)


@router.post("/logout")
def log_out(request: Request) -> Response:
    request.session.clear()
    return RedirectResponse("/login", status_code=303)
