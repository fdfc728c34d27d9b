"""Logging in and out. `store.people` checks passwords; a client that guesses has to wait.

A session is a row, and its cookie a random token. It is in force for its hours, while its person exists with the
password of the log-in and has not logged out, so that removing one ends their sessions at once.
"""

import hashlib
import ipaddress
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from itsdangerous import BadData, URLSafeSerializer

from aggregator.context import AppContext
from aggregator.dashboard.rendering import page
from aggregator.network import network_of
from aggregator.store import Change, people, record, session_rows
from aggregator.store.tables import DashboardSession

router = APIRouter()
WRONG = "Name or password is wrong."  # one sentence for both: it must not tell which names exist
COUNTS_MAX = 10_000
ALL_NAMES = 4  # a client may fail so many times as often for all names as for one
CHECKED_AT_ONCE = 2  # each check of a password takes 64 MiB and the cores for a moment
SALT_BYTES = 16
TOKEN_BYTES = 32
CHECKS_WAITING_MAX = 8  # each holds one of the threads that make pages
DEVICE_COOKIE = "hemofed_device"
DEVICE_LASTS_S = 365 * 86_400


class Client(NamedTuple):
    """Whom an attempt counts for: an address, or a device that the administrator of that name has logged in with."""

    kind: Literal["address", "device"]
    name: str


class LoginAttempts:
    """Bounds log-ins that fail, in memory. A restart forgets them; the wait slows guessing all the same.

    An attempt is counted before its password is checked: of many at once, no more are checked than of many in a row.
    It counts the attempts of one client for one name, and all attempts of one client. So a stranger who guesses keeps
    out only clients of the same address that no administrator has logged in with.
    """

    def __init__(self, allowed: int, wait_s: int) -> None:
        self._allowed, self._wait = allowed, timedelta(seconds=wait_s)
        self._lock = threading.Lock()
        # By client and name; the name "" stands for all.
        self._counts: dict[tuple[Client, str], tuple[int, datetime]] = {}
        # Strangers of many addresses can fill their queue, and not that of administrators' devices.
        self._waiting = {
            "address": threading.BoundedSemaphore(CHECKS_WAITING_MAX),
            "device": threading.BoundedSemaphore(CHECKS_WAITING_MAX),
        }
        self._checking = threading.BoundedSemaphore(CHECKED_AT_ONCE)

    def begin(self, name: str, client: Client, now: datetime) -> bool:
        """Count an attempt; False when the client had too many a short while ago. `now` is aware UTC."""
        bounds = {(client, name): self._allowed, (client, ""): self._allowed * ALL_NAMES}
        with self._lock:
            counts = {key: self._count(key, now) for key in bounds}
            # A refused attempt changes nothing. Were it counted, a client could not end its own wait by waiting.
            if any(counts[key] >= bound for key, bound in bounds.items()):
                return False
            for key, count in counts.items():
                self._counts.pop(key, None)  # to the end: the first entry is the oldest
                self._counts[key] = count + 1, now
            while len(self._counts) > COUNTS_MAX:
                del self._counts[next(iter(self._counts))]
        return True

    def succeeded(self, name: str, client: Client) -> None:
        """Forget the attempts of a client for a name that it has the password of."""
        with self._lock:
            self._counts.pop((client, name), None)
            if (client, "") in self._counts:
                count, since = self._counts[client, ""]
                self._counts[client, ""] = count - 1, since

    @contextmanager
    def checking(self, client: Client) -> Iterator[bool]:
        """Hold one of the few places in which passwords are checked; yields False when too many wait for one."""
        waiting = self._waiting[client.kind]
        if not waiting.acquire(blocking=False):
            yield False
            return
        try:
            with self._checking:
                yield True
        finally:
            waiting.release()

    def _count(self, key: tuple[Client, str], now: datetime) -> int:
        count, since = self._counts.get(key, (0, now))
        return 0 if now - since >= self._wait else count


class Devices:
    """Signed cookies of browsers with which an administrator has logged in."""

    def __init__(self, key: str) -> None:
        self._serializer = URLSafeSerializer(key, salt="hemofed device")

    def client(self, request: Request, name: str) -> Client:
        """Return what the attempts of a request count for: its device for `name`, else its address."""
        try:
            owner, device = self._serializer.loads(request.cookies.get(DEVICE_COOKIE, ""))
            if owner == name:
                return Client("device", str(device))
        except (BadData, ValueError, TypeError):
            pass
        return Client("address", network_of(request.client.host) if request.client else "")

    def remember(self, request: Request, response: Response, name: str) -> None:
        """Give the browser a device of its own for `name`."""
        cookie = self._serializer.dumps([name, secrets.token_hex(16)])
        response.set_cookie(
            DEVICE_COOKIE,
            cookie,
            max_age=DEVICE_LASTS_S,
            path="/login",
            httponly=True,
            samesite="strict",
            secure=_is_https(request),
        )


class Sessions:
    """Begins, finds and ends sessions. They are rows, so they end for all processes, and stay ended after a restart."""

    def __init__(self, app: AppContext) -> None:
        self._app = app
        self._lasts = timedelta(hours=app.settings.dashboard.session_hours)

    def begin(self, request: Request, response: Response, name: str) -> None:
        """Give the browser a session of its own; the one that it had ends. The password of `name` fits."""
        token, now = secrets.token_urlsafe(TOKEN_BYTES), self._app.clock()
        with self._app.store.write() as session:
            # A cookie that was planted in the browser before the log-in must not become the session.
            session_rows.end(session, _hash_of(request))
            person = people.find(session, name)
            if person is None:  # removed a moment ago
                return
            row = DashboardSession(
                token_hash=hashlib.sha256(token.encode()).digest(),
                name=name,
                password_mark=session_rows.mark_of(person.password_hash),
                address=address_of(request),
                began_at=now,
                ends_at=now + self._lasts,
            )
            session_rows.begin(session, row)
        # Never renewed: a session ends at its time, however long a page of it stays open.
        response.set_cookie(
            _cookie_name(request),
            token,
            max_age=int(self._lasts.total_seconds()),
            httponly=True,
            samesite="strict",
            secure=_is_https(request),
        )

    def visitor(self, request: Request) -> session_rows.Visitor | None:
        """Return the person of the request's session; None when it is in force no more, or there is none."""
        with self._app.store.read() as session:
            return session_rows.visitor(session, _hash_of(request), self._app.clock())

    def end(self, request: Request, response: Response) -> None:
        """End the request's session; copies of its cookie open no page from now on."""
        visitor, now = request.state.visitor, self._app.clock()
        with self._app.store.write() as session:
            if session_rows.end(session, visitor.token_hash):
                change = Change(now, f"person:{visitor.name}", f"administrator:{visitor.name}", "at the dashboard")
                record(session, change, None, "logged out")
        response.delete_cookie(_cookie_name(request), httponly=True, samesite="strict", secure=_is_https(request))


def _hash_of(request: Request) -> bytes:
    return hashlib.sha256(request.cookies.get(_cookie_name(request), "").encode()).digest()


def _cookie_name(request: Request) -> str:
    """Over HTTPS browsers take a __Host- cookie from this host alone: no other host of its domain can plant one."""
    return "__Host-hemofed_session" if _is_https(request) else "hemofed_session"


def _is_https(request: Request) -> bool:
    return request.url.scheme == "https"  # by the word of the proxy in front


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
    password: Annotated[str, Form(max_length=people.PASSWORD_CHARACTERS_MAX)],
) -> Response:
    """Begin a session, or show the form again."""
    state = request.app.state
    app, attempts = state.context, state.login_attempts
    client = state.devices.client(request, name)
    # Before the check: a client that has to wait learns nothing from a right password.
    if not attempts.begin(name, client, app.clock()):
        return page(request, "login.html", status_code=429, problem="Too many wrong passwords. Try again later.")
    with attempts.checking(client) as free:
        if not free:
            return page(request, "login.html", status_code=503, problem="Too many log-ins at once. Try again.")
        with app.store.read() as session:
            fits = people.password_fits(session, name, password)
    _record_login(app, request, name, fits=fits, password=password)
    if not fits:
        return page(request, "login.html", status_code=401, problem=WRONG)
    attempts.succeeded(name, client)
    reply = RedirectResponse("/", status_code=303)
    state.sessions.begin(request, reply, name)
    state.devices.remember(request, reply, name)
    return reply


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    reply = RedirectResponse("/login", status_code=303)
    request.app.state.sessions.end(request, reply)
    return reply


def expect_password(request: Request, password: str) -> None:
    """Let an act pass only with the person's password: a browser that was left alone is not enough for it.

    Raises:
        HTTPException: 403 for a wrong password; 429 and 503 as at the log-in.
    """
    state, name = request.app.state, request.state.visitor.name
    # By session and not by device: wrong ones of a stolen session keep nobody from logging in.
    client = Client("device", request.state.visitor.token_hash.hex())
    if not state.login_attempts.begin(name, client, state.context.clock()):
        raise HTTPException(429, "Too many wrong passwords; nothing was done. Try again later.")
    with state.login_attempts.checking(client) as free:
        if not free:
            raise HTTPException(503, "Too many passwords are being checked; nothing was done. Try again.")
        with state.context.store.read() as session:
            fits = people.password_fits(session, name, password)
    if not fits:
        raise HTTPException(403, "Expected your password, got another text; nothing was done.")
    state.login_attempts.succeeded(name, client)


def _record_login(app: AppContext, request: Request, name: str, *, fits: bool, password: str) -> None:
    """Write the attempt down, and replace an old hash of a password that fits."""
    origin = f"from {address_of(request)}"
    with app.store.write() as session:
        person = people.find(session, name)
        if not fits or person is None:
            # A name that a stranger typed may be anything, a password too: only names that exist are written down.
            subject = "dashboard" if person is None else f"administrator:{name}"
            record(session, Change(app.clock(), "dashboard", subject, origin), None, "log-in failed")
            return
        people.renew_hash(session, name, password, app.random(SALT_BYTES))
        change = Change(app.clock(), f"person:{name}", f"administrator:{name}", origin)
        record(session, change, None, "logged in")


def address_of(request: Request) -> str:
    """Return the client's address. It may come from a header, so only an address is written down."""
    try:
        return str(ipaddress.ip_address(request.client.host)) if request.client else "an unknown address"
    except ValueError:
        return "an unknown address"
