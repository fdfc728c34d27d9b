"""receiver.toml: the commented reference equals the defaults, and every mistake gets one sentence."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from site_client.errors import ConfigRefused
from site_client.receiver.settings import ReceiverSettings, load, parse

REFERENCE = Path(__file__).parents[3] / "deploy" / "receiver.toml"


def test_the_reference_file_holds_every_key_at_its_default() -> None:
    assert load(REFERENCE) == ReceiverSettings()
    assert not load(REFERENCE).is_configured
    written = {line.split("=")[0].strip() for line in REFERENCE.read_text().splitlines() if "=" in line.split("#")[0]}
    settings = ReceiverSettings()
    expected = set(settings.__dataclass_fields__) - {"storage", "dicomweb"}
    for section in (settings.storage, settings.dicomweb):
        expected |= set(section.__dataclass_fields__)
    assert written == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("keep_dayz = 3", "receiver.toml: keep_dayz is unknown; nearest is keep_days"),
        ("[storage]\nsender = {}", "nearest is storage.senders"),
        ("[storage]\nport = 0", "storage.port is a whole number from 1 to 65535, got 0"),
        ('[storage]\nsenders = { PACS = "10.1.2.3" }', "storage.senders is a table, each value a list, each item text"),
        ('[storage]\nsenders = { PACS = ["pacs.local"] }', "an IP address or a network such as 10.1.2.0/24, got 'pacs"),
        ('[storage]\nsenders = { PACS = ["10.1.2.3/24"] }', "an IP address or a network"),
        ("[storage]\nsenders = { PACS = [] }", "the addresses of PACS, got none"),
        ('[storage]\nsenders = { SEVENTEEN_LETTERS = ["10.1.2.3"] }', "an AE title is 1 to 16 printable characters"),
        ('[storage]\ncommitment = { PACS = "10.1.2.3:104" }', "PACS is not in storage.senders"),
        (
            '[storage]\nsenders = { PACS = ["10.1.2.3"] }\ncommitment = { PACS = "10.1.2.3" }',
            "an IP address and a port, as in 10.1.2.3:104",
        ),
        ('[dicomweb]\nurl = "https://user:swordfish@pacs"', "dicomweb.url is https://host[:port]/path"),
        ('[dicomweb]\nurl = "ftp://pacs"', "dicomweb.url is https://"),
        ('[dicomweb]\nurl = "http://pacs"\ncredential = "basic"', "needs an https:// url"),
        ('[dicomweb]\nwindows = ["at night"]', "dicomweb.windows: expected"),
        ('[dicomweb]\nbody_parts = ["Head"]', "dicomweb.body_parts holds words such as HEAD"),
        ('keep_days = 3\n[dicomweb]\nurl = "https://pacs"', "keep_days is above dicomweb.days_back = 3, or 0, got 3"),
        ("object_max_mib", "receiver.toml is not TOML"),
    ],
)
def test_a_mistake_stops_the_start_with_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigRefused) as refusal:
        parse(text, Path("/"))
    assert sentence in str(refusal.value)
    assert "swordfish" not in str(refusal.value)


def test_the_peers_are_all_addresses_that_the_unit_has_to_allow() -> None:
    text = (
        '[storage]\nsenders = { A = ["10.1.2.0/24"], B = ["fd00::1"] }\ncommitment = { B = "[fd00::2]:104" }\n'
        '[dicomweb]\nurl = "https://10.9.9.9:8443/dicom-web"'
    )
    assert set(parse(text, Path("/")).peers()) == {
        ip_network(text) for text in ("10.1.2.0/24", "fd00::1", "fd00::2", "10.9.9.9")
    }
