"""A short-lived Egress for commands. It takes the ledger's lock, so the agent must not be running."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime

from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.link import Link, enrolled
from site_client.config import SiteSettings


@contextmanager
def session(
    settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime], patience_s: float = math.inf
) -> Iterator[Egress]:
    """Put guard, ledger and link of this enrolled site together, for as long as the context lasts.

    Args:
        settings: Of this site.
        identity: Of this site.
        clock: Aware time.
        patience_s: For one answer, where that is less than agent.stall_s.

    Raises:
        InUse: The agent is running.
        LedgerBroken: The ledger does not verify.
    """
    ledger = Ledger(settings.folders.agent / "ledger.jsonl", identity.keys.signing, clock)
    with closing(ledger), closing(Link(enrolled(settings, identity, patience_s))) as link:
        yield Egress(Guard(settings.policy), ledger, link)
