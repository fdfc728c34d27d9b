"""`hemofed-site join`: from a token to an enrolled host."""

import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from federation.fingerprint import six_words
from federation.token import Token
from federation.v1 import enrolment_pb2

from site_client.agent.commands.roster import describe
from site_client.agent.egress.calls import JOIN
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.identity.identity import Joining, Membership, SiteIdentity
from site_client.agent.identity.keys import prove_possession
from site_client.agent.identity.pinning import fetch_ca
from site_client.agent.link import Endpoint, Link
from site_client.config import SiteSettings, is_host_port
from site_client.errors import ConfigRefused, IdentityRefused, Unreachable
from site_client.typed_json import Digest

ENROLMENT_PORT: Final = 8444  # listen.enrolment of deploy/aggregator.toml


def join(
    settings: SiteSettings,
    address: str,
    token_text: str,
    say: Callable[[str], None],
    confirm: Callable[[str], bool],
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> SiteIdentity:
    """Enrol this host, and wait until the coordinator approves and the custodian has signed a roster with it.

    A second run after an interruption, or after "no", continues.

    Args:
        settings: Of this site.
        address: Of the enrolment listener, host:port; without a port it is ENROLMENT_PORT.
        token_text: From the coordinator.
        say: Shows a line to the person who typed the command.
        confirm: Shows the first roster, and returns whether its hospitals are those of the agreement.
        wait: Sleeps for seconds.
        clock: Aware time.

    Raises:
        TokenRefused: The token is not well formed.
        ConfigRefused: The address is none, or the token is for another site than the settings name.
        IdentityRefused: This host is enrolled already, the server is not the token's aggregator, or the person does
            not accept the roster.
        Refused: The aggregator does not accept the token.
        Unreachable: The first connection failed; later failures are shown, and the waiting goes on.
    """
    address = _with_port(address)
    token = Token.parse(token_text)
    # Before any contact: a mistake here must not use up the token of another site.
    if token.site != settings.name:
        raise ConfigRefused(f"the token is for {token.site!r}, but site.toml says name = {settings.name!r}")
    joining = Joining.prepare(settings.folders.agent / "identity", token.site)
    ca_pem = fetch_ca(address, settings.aggregator.proxy, token.ca_fingerprint)
    link = Link(Endpoint(address, ca_pem, proxy=settings.aggregator.proxy, stall_s=settings.agent.stall_s))
    # The join is recorded, too; only its payload is not kept, because it holds the token.
    ledger = Ledger(settings.folders.agent / "ledger.jsonl", joining.keys.signing, clock, joining=True)
    try:
        egress = Egress(Guard(settings.policy), ledger, link)
        credentials = _ask_until_approved(egress, _request(joining, token), say, wait)
    finally:
        ledger.close()
        link.close()
    membership = Membership(token.site, address, Digest(token.ca_fingerprint))
    roster, custodian = joining.check(credentials, membership)
    # Later rosters are held against this one: invented hospitals in it would count from the first round on.
    if not confirm(describe(roster, custodian, token.site, {})):
        raise IdentityRefused("the roster was not accepted, so this host is not enrolled; ask the coordinator about it")
    identity = joining.accept(credentials, membership)
    say(f"enrolled as {identity.site}; certificate until {identity.expires_at:%Y-%m-%d}, renewed by the agent")
    return identity


def _with_port(address: str) -> str:
    whole = address if re.search(r"[^:\]]:[^:]*$|\]:", address) else f"{address}:{ENROLMENT_PORT}"
    if not is_host_port(whole):
        raise ConfigRefused(
            f"expected the coordinator's address as HOST or HOST:PORT, got {address[:80]!r}; the invitation has it"
        )
    return whole


def _request(joining: Joining, token: Token) -> enrolment_pb2.JoinRequest:
    return enrolment_pb2.JoinRequest(
        site=joining.site,
        secret=token.secret,
        csr_der=joining.request.csr_der,
        signing_key=joining.keys.signing_public,
        sealing_key=joining.keys.sealing.public_bytes,
        possession=prove_possession(joining.keys, joining.request.csr_der),
    )


def _ask_until_approved(
    egress: Egress, request: enrolment_pb2.JoinRequest, say: Callable[[str], None], wait: Callable[[float], None]
) -> enrolment_pb2.Credentials:
    try:
        reply = egress.send(JOIN, request)
    except Unreachable as error:
        # The handshake before has shown the consortium's own CA there, so the host is right.
        raise Unreachable(
            f"{egress.dest} is the aggregator and takes no invitation: is it the port for sites? join dials the one "
            f"for enrolment, usually {ENROLMENT_PORT}"
        ) from error
    if reply.WhichOneof("outcome") == "pending":
        say("waiting for the coordinator; read these six words to them on the telephone:")
        say(f"    {six_words(request.csr_der, request.signing_key, request.sealing_key)}")
    while reply.WhichOneof("outcome") != "credentials":
        pause_s = max(1, reply.pending.retry_after_s)
        # Spread, so that hospitals which wait for one coordinator do not poll together.
        wait(pause_s * (1 + secrets.randbelow(256) / 1024))
        try:
            reply = egress.send(JOIN, request)
        except Unreachable as error:
            say(f"{error}; still waiting")
    return reply.credentials
