"""The way out for who types a command: opened for one errand, while no agent holds the ledger."""

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
def errand(
    settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime], patience_s: float = math.inf
) -> Iterator[Egress]:
    """Guard, ledger and link of this enrolled site. `patience_s`: for an answer. Errors: InUse, LedgerBroken."""
    ledger = Ledger(settings.folders.agent / "ledger.jsonl", identity.keys.signing, clock)
    with closing(ledger), closing(Link(enrolled(settings, identity, patience_s))) as link:
        yield Egress(Guard(settings.policy), ledger, link)
