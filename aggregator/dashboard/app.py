"""The dashboard's application: its pages, the guard before them, and the headers of every answer."""

import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware

from aggregator.context import AppContext
from aggregator.dashboard import acting, pages, sessions
from aggregator.dashboard.conditions import WriteProbe, refusal
from aggregator.dashboard.forms import FormTokens
from aggregator.dashboard.rendering import page

log = structlog.get_logger()

HERE = Path(__file__).resolve().parent
PUBLIC_PATHS = ("/login", "/static/")  # all others need a session
HEADERS = {
    # No script, style, image or frame from another origin, and no inline one: pages work in a network without internet,
    # and text that was injected into a page stays text.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Next = Callable[[Request], Awaitable[Response]]


def create_app(app: AppContext) -> FastAPI:
    """Make the application. It speaks plain HTTP; the coordinator puts a reverse proxy with HTTPS in front."""
    web = FastAPI(title="hemofed", docs_url=None, redoc_url=None, openapi_url=None)
    web.state.context = app
    key = session_key(app.settings.state.folder)
    web.state.login_attempts = sessions.LoginAttempts(
        app.settings.dashboard.failed_logins_max, app.settings.dashboard.failed_logins_wait_s
    )
    web.state.devices = sessions.Devices(key)
    web.state.sessions = sessions.Sessions(app)
    web.state.forms = FormTokens(key)
    web.state.write_probe = WriteProbe(app.store)
    web.include_router(sessions.router)
    web.include_router(pages.router)
    web.include_router(acting.router)
    web.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    web.exception_handler(HTTPException)(_refused)
    # Middleware added last runs first: the session is read before the guard asks for it.
    web.middleware("http")(_guard)
    web.add_middleware(
        SessionMiddleware,
        secret_key=key,
        session_cookie="hemofed_session",
        max_age=app.settings.dashboard.session_hours * 3600,
        same_site="strict",
    )
    web.middleware("http")(_harden)
    return web


def session_key(folder: Path) -> str:
    """Return the key that signs cookies; made once, so that a restart ends no session."""
    path = folder / "dashboard.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path.read_text()


def _refused(request: Request, error: HTTPException) -> Response:
    return page(request, "error.html", status_code=error.status_code, problem=error.detail)


# Starlette's middleware has to be asynchronous. The store is not, so it is read in a thread.


async def _guard(request: Request, call_next: Next) -> Response:
    """Send a visitor without a session in force to the log-in page."""
    if request.url.path.startswith(PUBLIC_PATHS):
        return await call_next(request)
    role = await run_in_threadpool(request.app.state.sessions.role, request.session)
    if role is not None:
        request.state.role = role
        return await call_next(request)
    request.session.clear()
    return RedirectResponse("/login", status_code=303)


def _failed(request: Request, error: Exception) -> Response:
    why = refusal(error) if isinstance(error, DBAPIError) else ""
    if why:
        log.error("database refused", why=why, path=request.url.path)
        sentence = f"The aggregator cannot use its database: {why}."
        return PlainTextResponse(sentence, status_code=503, headers={"Retry-After": "10"})
    log.exception("page failed", path=request.url.path, exc_info=error)
    return PlainTextResponse("The aggregator failed at this; its log says how.", status_code=500)


async def _harden(request: Request, call_next: Next) -> Response:
    """Refuse a form that another site's page makes a browser send, and add the headers to every answer."""
    if request.method not in ("GET", "HEAD") and not sessions.is_own_form(request):
        response: Response = PlainTextResponse("This form came from another site.", status_code=403)
    else:
        try:
            response = await call_next(request)
        except Exception as error:
            # Here and not where Starlette would do it, outside of this function: its answer would lack the headers.
            response = _failed(request, error)
    response.headers.update(HEADERS)
    if request.url.scheme == "https":  # by the word of the proxy in front; then the cookie never travels in clear
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
        for index, (name, value) in enumerate(response.raw_headers):
            if name == b"set-cookie":
                response.raw_headers[index] = (name, value + b"; secure")
    return response
