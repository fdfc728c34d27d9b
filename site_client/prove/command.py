"""All that can be shown here, in the order in which a reviewer asks for it."""

from collections.abc import Iterator
from pathlib import Path

from site_client.agent.egress import verify
from site_client.agent.identity import keys
from site_client.config import SiteSettings, load
from site_client.errors import IdentityRefused, LedgerBroken
from site_client.prove.confined import show_running, show_walls
from site_client.prove.finding import Outcome, ProofFinding
from site_client.prove.round_check import CLAIM as CANARY_CLAIM
from site_client.prove.round_check import show_no_canary

_LEDGER_CLAIM = "the ledger of what left is unbroken, and every line is signed by this site"


def prove(config: Path, *, with_drill: bool) -> Iterator[ProofFinding]:
    """Every finding, as it comes. Errors: ConfigRefused."""
    settings = load(config)
    yield from show_walls(config)
    yield from show_running(settings)
    yield show_ledger(settings)
    if with_drill:
        yield show_no_canary()
    else:
        yield ProofFinding(CANARY_CLAIM, Outcome.NOT_SHOWN, ("left out at your word (--no-canary)",))


def show_ledger(settings: SiteSettings) -> ProofFinding:
    """Chain, signatures, kept payloads, and what left in all."""
    folder = settings.folders.agent
    path = folder / "ledger.jsonl"
    try:
        found = verify.verify(path, keys.load(folder / "identity").signing_public.hex())
        payloads = verify.check_payloads(path, folder / "payloads")
    except LedgerBroken as error:
        return ProofFinding(_LEDGER_CLAIM, Outcome.BROKEN, (str(error),))
    except (IdentityRefused, PermissionError):
        return ProofFinding(
            _LEDGER_CLAIM, Outcome.NOT_SHOWN, ("this host has not joined, or its keys may not be read",)
        )
    if found.entries == 0:
        return ProofFinding(_LEDGER_CLAIM, Outcome.NOT_SHOWN, ("nothing has left this site yet",))
    evidence = (
        f"{found.entries} entries; {found.allowed} messages of {found.bytes_out:,} bytes left; {found.refused} refused",
        f"head {found.head}",
        f"{payloads} payloads are kept, each with the SHA-256 that stands in its entry",
    )
    return ProofFinding(_LEDGER_CLAIM, Outcome.SHOWN, evidence)
