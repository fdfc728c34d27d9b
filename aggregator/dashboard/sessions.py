"""Logging in and out. `store.people` checks passwords; a name under attack has to wait.

A session is a signed cookie with the administrator's name, a mark of the password, and an id. It is in force while
that administrator exists with that password and has not logged out, so removing one ends their sessions at once.
"""

import hashlib
import secrets
import threading
from collections.abc import MutableMapping
from datetime import datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from aggregator.context import AppContext
from aggregator.dashboard.rendering import page
from aggregator.store import people

router = APIRouter()
WRONG = "Name or password is wrong."  # one sentence for both: it must not tell which names exist
NAMES_MAX = 10_000
CHECKED_AT_ONCE = 2  # each check of a password takes 32 MiB and a core for a moment


class FailedLogins:
    """Counts wrong passwords by name, in memory. A restart forgets the counts; the wait slows guessing all the same."""

    def __init__(self, allowed: int, wait_s: int) -> None:
        self._allowed, self._wait = allowed, timedelta(seconds=wait_s)
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, datetime]] = {}
        self.checking = threading.BoundedSemaphore(CHECKED_AT_ONCE)

    def must_wait(self, name: str, now: datetime) -> bool:
        """Whether the name had too many wrong passwords a short while ago. `now` is aware UTC."""
        with self._lock:
            count, since = self._failures.get(name, (0, now))
            return count >= self._allowed and now - since < self._wait

    def failed(self, name: str, now: datetime) -> None:
        """Count a wrong password."""
        with self._lock:
            if len(self._failures) >= NAMES_MAX:  # an attacker invents names; forgetting is safer than growing
                self._failures.clear()
            count, since = self._failures.get(name, (0, now))
            expired = now - since >= self._wait
            # The time of the last failure: who keeps guessing keeps waiting.
            self._failures[name] = (1 if expired else count + 1, now)

    def succeeded(self, name: str) -> None:
        """Forget the wrong passwords of a name."""
        with self._lock:
            self._failures.pop(name, None)


class Sessions:
    """Says which sessions are in force. Ended ones are kept in memory, so a restart revives copies of their cookies."""

    def __init__(self, app: AppContext) -> None:
        self._app = app
        self._lasts = timedelta(hours=app.settings.dashboard.session_hours)
        self._lock = threading.Lock()
        self._ended: dict[str, datetime] = {}

    def begin(self, session: MutableMapping[str, Any], name: str) -> None:
        """Fill the cookie of an administrator whose password fits."""
        # Cleared first: a cookie that an attacker planted before the log-in must not become the session.
        session.clear()
        session.update(name=name, id=secrets.token_hex(16), password=self._password_mark(name))

    def in_force(self, session: MutableMapping[str, Any]) -> bool:
        """Whether the cookie lets its holder in."""
        if "name" not in session or self._password_mark(session["name"]) != session.get("password"):
            return False
        with self._lock:
            return session.get("id") not in self._ended

    def end(self, session: MutableMapping[str, Any]) -> None:
        """End a session; copies of its cookie let nobody in from now on."""
        now = self._app.clock()
        with self._lock:
            self._ended = {session_id: at for session_id, at in self._ended.items() if now - at < self._lasts}
            self._ended[session["id"]] = now
        session.clear()

    def _password_mark(self, name: str) -> str | None:
        """Changes with the stored hash and reveals nothing of it. None when there is no such administrator."""
        with self._app.store.read() as session:
            stored = people.password_hash_of(session, name)
        return None if stored is None else hashlib.sha256(b"session\0" + stored.encode()).hexdigest()[:32]


def is_own_form(request: Request) -> bool:
    """Whether a request that changes something comes from a page of the dashboard, or from no page at all.

    Browsers say so in Sec-Fetch-Site over HTTPS and on the loopback, and in Origin elsewhere. SameSite=strict keeps the
    cookie back in any case; this also keeps another site from logging a visitor in under a name of its choice.
    """
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None:
        return fetch_site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


@router.get("/login")
def show_login(request: Request) -> Response:
    """Show the log-in form."""
    return page(request, "login.html", problem=None)


@router.post("/login")
def log_in(
    request: Request,
    name: Annotated[str, Form(max_length=128)],
    password: Annotated[str, Form(max_length=1024)],
) -> Response:
    """Begin a session, or show the form again."""
    app, logins = request.app.state.context, request.app.state.logins
    now = app.clock()
    # Before the check: a name that has to wait learns nothing from a right password.
    if logins.must_wait(name, now):
        return page(request, "login.html", status_code=429, problem="Too many wrong passwords. Try again later.")
    # Bounded: each check takes 32 MiB and a core, and anyone who reaches the page can ask for one.
    with logins.checking, app.store.read() as session:
        fits = people.password_fits(session, name, password)
    if not fits:
        logins.failed(name, now)
        return page(request, "login.html", status_code=401, problem=WRONG)
    logins.succeeded(name)
    request.app.state.sessions.begin(request.session, name)
    return RedirectResponse("/", status_code=303)


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    request.app.state.sessions.end(request.session)
    return RedirectResponse("/login", status_code=303)
