"""The dashboard's application: its pages, the guard before them, and the headers of every answer."""

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from aggregator.context import AppContext
from aggregator.dashboard import acting, pages, people_pages, sessions, standing_pages
from aggregator.dashboard.conditions import WriteProbe, refusal
from aggregator.dashboard.forms import FormTokens, Outcomes
from aggregator.dashboard.rendering import page
from aggregator.dashboard.standing_pages import Checks
from aggregator.secret_file import write_secret

log = structlog.get_logger()

HERE = Path(__file__).resolve().parent
KEY_BYTES = 32
HEADERS = {
    # No script, style, image or frame from another origin, and no inline one: pages work in a network without internet,
    # and text that was injected into a page stays text.
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Neither a window that another site has opened nor a page that embeds an answer of ours gets hold of it.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Next = Callable[[Request], Awaitable[Response]]


def create_app(app: AppContext, checks: Checks | None = None) -> FastAPI:
    """Make the application. It speaks plain HTTP; the coordinator puts a reverse proxy with HTTPS in front.

    Args:
        app: The aggregator.
        checks: Those of `/readyz`, for the page on its health; None where there is no running service.
    """
    # Redirections of slashes would name the host that the request names, which may be any.
    web = FastAPI(title="hemofed", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    web.state.context, web.state.checks = app, checks
    key = session_key(app.settings.state.folder)
    web.state.login_attempts = sessions.LoginAttempts(
        app.settings.dashboard.failed_logins_max, app.settings.dashboard.failed_logins_wait_s
    )
    web.state.devices = sessions.Devices(key)
    web.state.sessions = sessions.Sessions(app)
    web.state.forms = FormTokens(key)
    web.state.outcomes = Outcomes(key, web.state.forms)
    web.state.write_probe = WriteProbe(app.store)
    web.include_router(sessions.router)
    web.include_router(pages.router)
    web.include_router(standing_pages.router)
    web.include_router(people_pages.router)
    web.include_router(acting.router)
    web.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    web.exception_handler(HTTPException)(_refused)
    web.exception_handler(RequestValidationError)(_malformed)
    # Middleware added last runs first.
    web.middleware("http")(_guard)
    web.middleware("http")(_harden)
    return web


def session_key(folder: Path) -> str:
    """Return the key that signs cookies and forms; made once, so that forms of before a restart are still taken."""
    path = folder / "dashboard.key"
    # A file that a crash or a full disk left short is no key: with an empty one everybody could sign.
    if not path.exists() or len(path.read_text()) < 2 * KEY_BYTES:
        write_secret(path, secrets.token_hex(KEY_BYTES).encode())
    return path.read_text()


def _refused(request: Request, error: HTTPException) -> Response:
    return page(request, "error.html", status_code=error.status_code, problem=error.detail)


def _malformed(request: Request, error: RequestValidationError) -> Response:
    """Name the fields and not their values, as FastAPI would: one may be a password."""
    fields = ", ".join(sorted({str(fault["loc"][-1]) for fault in error.errors()}))
    return page(request, "error.html", status_code=422, problem=f"Not as the form asks for it: {fields}.")


# Starlette's middleware has to be asynchronous. The store is not, so it is read in a thread.


async def _guard(request: Request, call_next: Next) -> Response:
    """Send a visitor without a session in force to the log-in page."""
    path = request.url.path
    if path == "/login" or path.startswith("/static/"):
        return await call_next(request)
    visitor = await run_in_threadpool(request.app.state.sessions.visitor, request)
    if visitor is None:
        # The cookie stays: an answer that comes late must not take the one of a log-in meanwhile.
        return RedirectResponse("/login", status_code=303)
    request.state.visitor, request.state.role = visitor, visitor.role
    return await call_next(request)


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
    if request.url.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-cache"  # kept, and asked for by its ETag
    if request.url.scheme == "https":  # by the word of the proxy in front; then the cookie never travels in clear
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response
