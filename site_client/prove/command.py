"""All findings, in the order in which a reviewer asks for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from site_client.agent.egress import verify
from site_client.agent.identity import keys
from site_client.config import SiteSettings, load
from site_client.errors import IdentityRefused, LedgerBroken
from site_client.prove.confined import show_running, show_walls
from site_client.prove.finding import ProofFinding, ProofOutcome
from site_client.prove.round_check import CLAIM as CANARY_CLAIM
from site_client.prove.round_check import show_no_canary

_LEDGER_CLAIM: Final = "the ledger of all messages that left is unbroken, and every line is signed by this site"


def prove(config: Path, *, with_round_check: bool) -> Iterator[ProofFinding]:
    """Yield every finding when it is made.

    Args:
        config: The site.toml.
        with_round_check: Whether to run a round on a synthetic export, which takes minutes.

    Raises:
        ConfigRefused: The settings cannot be used.
    """
    settings = load(config)
    # The walls first: they are the claim that everything else rests on.
    yield from show_walls(config)
    yield from show_running(settings)
    yield show_ledger(settings)
    if with_round_check:
        yield show_no_canary()
    else:
        yield ProofFinding(CANARY_CLAIM, ProofOutcome.NOT_SHOWN, ("left out because of --no-canary",))


def show_ledger(settings: SiteSettings) -> ProofFinding:
    """Show chain, signatures, kept payloads, and the totals of all that left."""
    folder = settings.folders.agent
    path = folder / "ledger.jsonl"
    try:
        verified = verify.verify(path, keys.load(folder / "identity").signing_public.hex())
        payloads = verify.check_payloads(path, folder / "payloads")
    except LedgerBroken as error:
        return ProofFinding(_LEDGER_CLAIM, ProofOutcome.BROKEN, (str(error),))
    except (IdentityRefused, PermissionError):
        return ProofFinding(
            _LEDGER_CLAIM, ProofOutcome.NOT_SHOWN, ("this host has not joined, or its keys may not be read",)
        )
    if verified.entries == 0:
        return ProofFinding(_LEDGER_CLAIM, ProofOutcome.NOT_SHOWN, ("nothing has left this site yet",))
    evidence = (
        f"{verified.entries} entries; {verified.allowed} messages of {verified.bytes_out:,} bytes left; "
        f"{verified.refused} refused",
        f"head {verified.head}",
        f"{payloads} payloads are kept, each with the SHA-256 that stands in its entry",
    )
    return ProofFinding(_LEDGER_CLAIM, ProofOutcome.SHOWN, evidence)
