"""Forms that change something: the token that each carries, and the role that may send it.

SameSite and `sessions.is_own_form` keep other sites' pages out. The token also keeps out a page that an attacker brings
under the dashboard's own origin without reading the session: it follows from the session's id and a key of the server.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Form, HTTPException, Request

from aggregator.states import Role


class FormTokens:
    """Makes and checks the tokens of forms."""

    def __init__(self, key: str) -> None:
        """Take the key that signs cookies."""
        self._key = key.encode()

    def of(self, session: Mapping[str, Any]) -> str:
        """Return the token of a session's forms; empty without a session."""
        session_id = str(session.get("id", ""))
        return hmac.new(self._key, b"form\0" + session_id.encode(), hashlib.sha256).hexdigest() if session_id else ""


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
    """Let only forms pass that the dashboard made for this session.

    Raises:
        HTTPException: 403 for others.
    """
    expected = request.app.state.forms.of(request.session)
    if not expected or not hmac.compare_digest(expected.encode(), form_token.encode()):
        raise HTTPException(403, "This form is of another session, or of one that has ended; go back and try again.")
