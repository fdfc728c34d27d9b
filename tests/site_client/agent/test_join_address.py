"""The address that a person types after `hemofed-site join`."""

from pathlib import Path

import pytest
from federation.token import Token

from site_client.agent.commands.join import ENROLMENT_PORT, join
from site_client.config import FoldersSettings, SiteSettings
from site_client.errors import ConfigRefused, SiteError, Unreachable
from tests.site_client.agent.conftest import Consortium
from tests.site_client.agent.test_link import serve


def typed(folder: Path, consortium: Consortium, address: str) -> SiteError:
    settings = SiteSettings("mercy", folders=FoldersSettings(folder / "state", folder / "spool"))
    token = Token.new("mercy", consortium.fingerprint, bytes)
    with pytest.raises(SiteError) as refusal:
        join(settings, address, token.text(), lambda _: None, lambda _: True)
    return refusal.value


@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1", "[::1]"])
def test_an_address_without_a_port_means_the_usual_port_for_enrolment(
    tmp_path: Path, consortium: Consortium, host: str
) -> None:
    refusal = typed(tmp_path, consortium, host)
    assert isinstance(refusal, Unreachable)
    assert str(refusal).startswith(f"{host}:{ENROLMENT_PORT} ")


@pytest.mark.parametrize(
    "address", ["", "host:", ":8444", "host:port", "https://host:8444", "::1", "a b", "host:70000"]
)
def test_what_is_no_address_is_refused_in_a_sentence(tmp_path: Path, consortium: Consortium, address: str) -> None:
    refusal = typed(tmp_path, consortium, address)
    assert isinstance(refusal, ConfigRefused)
    assert "HOST or HOST:PORT" in str(refusal)


def test_the_port_for_sites_in_place_of_the_one_for_enrolment_is_named(tmp_path: Path, consortium: Consortium) -> None:
    server, address = serve(consortium, mutual=True)
    try:
        refusal = typed(tmp_path, consortium, address)
    finally:
        server.stop(0).wait()
    assert isinstance(refusal, Unreachable)
    assert "is it the port for sites? join dials the one for enrolment, usually 8444" in " ".join(str(refusal).split())
