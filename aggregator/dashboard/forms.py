"""Forms that change something: the token that each carries, the role that may send it, and the sentence afterwards.

SameSite and `sessions.is_own_form` keep other sites' pages out. The token also keeps out a page that an attacker brings
under the dashboard's own origin without reading the session: it follows from the session, the form's address, and a key
of the server. So the token of one form, stolen, serves no other.
"""

import hashlib
import hmac
from typing import Annotated

from fastapi import Form, HTTPException, Request, Response
from itsdangerous import BadData, URLSafeSerializer

from aggregator.states import Role
from aggregator.store.session_rows import Visitor

OUTCOME_COOKIE = "hemofed_outcome"
OUTCOME_LASTS_S = 60
REFRESH_HEADER = "X-Hemofed-Refresh"  # of a page that fetches itself


class FormTokens:
    """Makes and checks the tokens of forms."""

    def __init__(self, key: str) -> None:
        """Take the key that signs cookies."""
        self._key = key.encode()

    def of(self, visitor: Visitor, path: str) -> str:
        """Return the token of a session's form that is sent to `path`."""
        return hmac.new(self._key, b"form\0" + visitor.token_hash + path.encode(), hashlib.sha256).hexdigest()


class Outcomes:
    """The sentence after an act, said once, on the page that follows: a signed cookie of that page and session."""

    def __init__(self, key: str, forms: FormTokens) -> None:
        self._serializer, self._forms = URLSafeSerializer(key, salt="hemofed outcome"), forms

    def leave(self, request: Request, response: Response, path: str, sentence: str) -> None:
        """Let the page at `path` say it."""
        cookie = self._serializer.dumps([self._forms.of(request.state.visitor, path), sentence])
        response.set_cookie(
            OUTCOME_COOKIE,
            cookie,
            max_age=OUTCOME_LASTS_S,
            path=path,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )

    def of(self, request: Request) -> str:
        """Return the sentence for this page; empty when there is none, or the page only refreshes itself."""
        visitor = getattr(request.state, "visitor", None)
        if visitor is None or REFRESH_HEADER in request.headers:
            return ""
        try:
            token, sentence = self._serializer.loads(request.cookies.get(OUTCOME_COOKIE, ""))
        except (BadData, ValueError, TypeError):
            return ""
        return str(sentence) if token == self._forms.of(visitor, request.url.path) else ""

    def said(self, request: Request, response: Response) -> None:
        """Take the cookie back."""
        response.delete_cookie(OUTCOME_COOKIE, path=request.url.path, httponly=True, samesite="strict")


def may_act(role: Role | None) -> bool:
    """Whether the role changes runs, sites and rosters, as `commands.base` has it."""
    return role in (Role.OPERATOR, Role.ADMIN)


def acting(request: Request) -> None:
    """Let only those roles pass that change runs and sites.

    Raises:
        HTTPException: 403 for others.
    """
    if not may_act(request.state.role):
        raise HTTPException(
            403, f"Your role, {request.state.role}, does not allow this; ask an administrator for the role operator."
        )


def own_form(request: Request, form_token: Annotated[str, Form()] = "") -> None:
    """Let only forms pass that the dashboard made for this session and this address.

    Raises:
        HTTPException: 403 for others.
    """
    expected = request.app.state.forms.of(request.state.visitor, request.url.path)
    if not hmac.compare_digest(expected.encode(), form_token.encode()):
        raise HTTPException(403, "This form is of another session or page, or of a session that has ended; try again.")
