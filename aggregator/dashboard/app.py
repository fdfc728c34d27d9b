"""The dashboard's application: who may see it, what headers its answers carry, which pages it has."""

import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.sessions import SessionMiddleware

from aggregator.dashboard import pages, sessions
from aggregator.hub import Hub

HERE = Path(__file__).resolve().parent
OPEN_PATHS = ("/login", "/static/")  # everything else asks for a session
HEADERS = {
    # No script, style, image or frame from anywhere else: the pages work in a network without internet.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_app(hub: Hub) -> FastAPI:
    """The pages over this hub's rows. Plain HTTP: a reverse proxy of the coordinator's speaks HTTPS."""
    app = FastAPI(title="hemofed", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.hub = hub
    app.state.logins = sessions.FailedLogins(
        hub.settings.dashboard.failed_logins_max, hub.settings.dashboard.failed_logins_wait_s
    )
    app.include_router(sessions.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    # Middleware added last runs first: the session is read before the guard asks for it.
    app.middleware("http")(_guard)
    app.add_middleware(
        SessionMiddleware,
        secret_key=session_key(hub.settings.state.folder),
        session_cookie="hemofed_session",
        max_age=hub.settings.dashboard.session_hours * 3600,
        same_site="strict",
    )
    return app


def session_key(folder: Path) -> str:
    """The key that signs session cookies; made once, for the service's eyes only. A restart logs nobody out."""
    path = folder / "dashboard.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path.read_text()


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Sends whoever has no session to the log-in page; adds the headers to every answer.

    The one coroutine here: Starlette's middleware is asynchronous by nature. It reads the cookie and waits for nothing.
    """
    if not request.url.path.startswith(OPEN_PATHS) and "name" not in request.session:
        response: Response = RedirectResponse("/login", status_code=303)
    else:
        response = await call_next(request)
    response.headers.update(HEADERS)
    return response
