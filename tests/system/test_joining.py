"""`hemofed-site join` and the first roster: shown whole, confirmed by a person, and only then kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from site_client.agent.commands.join import join
from site_client.agent.identity.identity import SiteIdentity
from site_client.errors import IdentityRefused
from tests.system.consortium import Consortium, consortium


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Consortium]:
    with consortium(tmp_path) as made:
        yield made


def test_the_whole_first_roster_is_shown_and_no_keeps_nothing(coordinator: Consortium) -> None:
    coordinator.joined("north")
    settings = coordinator.hospital("mercy")
    address = f"127.0.0.1:{coordinator.aggregator.enrolment_port}"
    token = coordinator.enrolment.invite("mercy", auto_approve=True).text()
    shown: list[str] = []

    def attempt(answer: bool) -> SiteIdentity:
        def confirm(text: str) -> bool:
            shown.append(text)
            return answer

        return join(settings, address, token, lambda _: None, confirm, wait=lambda _: coordinator.sign_roster())

    with pytest.raises(IdentityRefused, match="the roster was not accepted"):
        attempt(answer=False)
    folder = settings.folders.agent / "identity"
    assert not (folder / "tls.pem").exists()
    assert not (folder / "approved.json").exists()
    identity = attempt(answer=True)
    assert shown[0] == shown[1]
    lines = shown[0].splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["mercy", "north"]
    assert all(entry.fingerprint.hex()[:16] in shown[0] for entry in identity.roster.entries)
    assert len(lines[1].split()) == 6  # the custodian's words
    assert identity.site == "mercy"
