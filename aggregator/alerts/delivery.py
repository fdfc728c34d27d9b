"""Messages by mail (SMTP, RFC 5321) and by webhook (JSON over HTTP). Each way is tried by itself."""

import hashlib
import hmac
import json
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

from aggregator.config import AlertSettings
from aggregator.errors import ConfigRefused

TIMEOUT_S = 10
SIGNATURE_HEADER = "X-Hemofed-Signature"


@dataclass(frozen=True)
class Notice:
    """One alert in a message. `state` is "raised", "reminder", "over" or "test"."""

    kind: str
    state: str
    sentence: str
    advice: str


def deliver(settings: AlertSettings, notices: list[Notice]) -> dict[str, str]:
    """Send notices in one message on every way that is set.

    Returns:
        The failure of each way in one sentence, by its name; empty for one that took the message.
    """
    return {name: _failure(send, notices) for name, send in _ways(settings)}


def _ways(settings: AlertSettings) -> Iterator[tuple[str, Callable[[list[Notice]], None]]]:
    if settings.mail_to:
        yield "mail", lambda notices: _mail(settings, notices)
    if settings.webhook:
        yield "webhook", lambda notices: _post(settings, notices)


def _failure(send: Callable[[list[Notice]], None], notices: list[Notice]) -> str:
    try:
        send(notices)
    except ConfigRefused as error:
        return str(error)
    except (smtplib.SMTPException, OSError) as error:
        # Never the text of the other side alone: it may quote what was sent, a password among it.
        code = getattr(error, "smtp_code", None) or getattr(error, "code", None)
        return f"expected the message to be taken, got {type(error).__name__}{f' {code}' if code else ''}"
    return ""


def _mail(settings: AlertSettings, notices: list[Notice]) -> None:
    message = EmailMessage()
    first = notices[0]
    more = f" and {len(notices) - 1} more" if len(notices) > 1 else ""
    message["Subject"] = f"[hemofed] {'over: ' if first.state == 'over' else ''}{first.sentence[:120]}{more}"
    message["From"], message["To"] = settings.mail_from, ", ".join(settings.mail_to)
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="hemofed.invalid")
    message.set_content("\n\n".join(_paragraph(notice) for notice in notices) + "\n")
    host, _, port = settings.smtp.rpartition(":")
    context = ssl.create_default_context()
    if settings.smtp_security == "tls":
        client: smtplib.SMTP = smtplib.SMTP_SSL(host, int(port), timeout=TIMEOUT_S, context=context)
    else:
        client = smtplib.SMTP(host, int(port), timeout=TIMEOUT_S)
    with client:
        if settings.smtp_security == "starttls":
            client.starttls(context=context)
        if settings.smtp_user:
            client.login(settings.smtp_user, _secret(settings.smtp_password_file))
        client.send_message(message)


def _paragraph(notice: Notice) -> str:
    if notice.state == "over":
        return f"Over: {notice.sentence}"
    again = "Still: " if notice.state == "reminder" else ""
    return f"{again}{notice.sentence}\n{notice.advice}"


def _post(settings: AlertSettings, notices: list[Notice]) -> None:
    body = json.dumps({"source": "hemofed", "alerts": [vars(notice) for notice in notices]}).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "hemofed-aggregator"}
    if settings.webhook_secret_file:
        secret = _secret(settings.webhook_secret_file).encode()
        headers[SIGNATURE_HEADER] = f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
    request = urllib.request.Request(settings.webhook, body, headers)  # noqa: S310 - http or https by `AlertSettings`
    with _OPENER.open(request, timeout=TIMEOUT_S) as reply:
        reply.read(1)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection could send the message to another host; it is an error instead."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _secret(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigRefused(f"expected a secret in {path}, got {error.strerror}; see [alerts]") from None
