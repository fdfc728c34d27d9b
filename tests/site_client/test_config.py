"""site.toml: the commented reference equals the defaults, and every mistake gets one sentence."""

from pathlib import Path

import pytest
from federation.vocabulary import Metric
from msgspec import inspect
from structlog.testing import capture_logs

from site_client.config import AggregatorAddress, FoldersSettings, PolicySettings, SiteSettings, load, parse
from site_client.errors import ConfigRefused

REFERENCE = Path(__file__).parents[2] / "deploy" / "site.toml"


def test_the_reference_file_holds_every_key_at_its_default() -> None:
    assert load(REFERENCE) == SiteSettings("example-hospital")
    assert load(REFERENCE).is_example
    written = {line.split("=")[0].strip() for line in REFERENCE.read_text().splitlines() if "=" in line.split("#")[0]}
    sections = SiteSettings("x")
    expected = {"name"}
    for name in ("aggregator", "folders", "policy", "ingest", "labels", "training", "idle", "agent"):
        expected |= set(getattr(sections, name).__dataclass_fields__)
    assert written == expected


def test_a_short_file_takes_the_defaults_for_the_rest() -> None:
    assert parse('name = "mercy"', Path("/")) == SiteSettings("mercy")


def test_relative_paths_start_at_the_file() -> None:
    settings = parse('name = "mercy"\n[folders]\nexport = "export"\nlabels = ["a.csv", "/b.csv"]', Path("/srv/site"))
    assert settings.folders.export == Path("/srv/site/export")
    assert settings.folders.labels == (Path("/srv/site/a.csv"), Path("/b.csv"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "name is missing"),
        ('name = "Mercy West"', "name is 1 to 32"),
        ('name = "m"\n[polcy]', "polcy is unknown; nearest is policy"),
        ('name = "m"\n[policy]\ncohort_minimum = 3', "nearest is policy.cohort_min"),
        ('name = "m"\n[policy]\ncohort_min = 2', "policy.cohort_min is a whole number from 3 to 500, got 2"),
        ('name = "m"\n[policy]\ncohort_min = true', "policy.cohort_min is a whole number from 3 to 500, got True"),
        ('name = "m"\n[policy]\nplan_approval = "yes"', "policy.plan_approval is one of ask, automatic, got 'yes'"),
        ('name = "m"\n[policy]\nmetrics = "loss"', "policy.metrics is a list, each item one of loss, histograms"),
        (
            'name = "m"\n[policy]\nmetrics = ["AUC"]',
            "policy.metrics is a list, each item one of loss, histograms, got ['AUC']",
        ),
        (
            'name = "m"\n[labels]\ncolumns = { Blutung = "bleed" }',
            "labels.columns gives each column a meaning, one of epidural,",
        ),
        ('name = "m"\n[labels]\ncolumns = { Blutung = 1 }', "labels.columns is a table, each value text"),
        ('name = "m"\npolicy = 3', "policy is a table, [policy]"),
        ("name = 3", "name is text, got 3"),
        ('name = "m"\n[folders]\nlabels = [3]', "folders.labels is a list, each item a path, got [3]"),
        ('name = "m"\n[folders]\nstate = 3', "folders.state is a path, got 3"),
        ('name = "m"\n[ingest]\nlossy = "no"', "ingest.lossy is true or false, got 'no'"),
        (
            'name = "m"\n[agent]\npoll_min_s = 9\npoll_max_s = 1',
            "agent.poll_max_s is at least agent.poll_min_s = 9, got 1",
        ),
        ('name = "m"\n[aggregator]\naddress = "hub"', "aggregator.address is host:port"),
        ('name = "m"\n[aggregator]\nproxy = "https://proxy:3128"', "https:// proxies do not work"),
        ('name = "m"\n[aggregator]\nproxy = "http://proxy"', "aggregator.proxy is http://"),
        ('name = "m"\n[idle]\nforeign_cpu_max = 25', "idle.foreign_cpu_max is a number from 0 to 1, got 25"),
        ('name = "m"\n[idle]\nwindows = ["19:00 for ever"]', "idle.windows: expected a length"),
        ('name = "m"\n[idle]\nblackout = ["2026-12-24..2026-12-01"]', "idle.blackout: expected days such as"),
        ('name = "m"\n[policy]\ntransfer_windows = ["at night"]', "policy.transfer_windows: "),
        ('name = "m"\n[policy]\nbandwidth_kib_s = 5', "agent.stall_s gives up on it"),
        ('name = "m"\n[idle]\nwindows = ["daily for 6h"]', "Mon..Fri 19:00 for 12h"),
        ('name = "m"\n[idle]\nforeign_cpu_max = nan', "idle.foreign_cpu_max is a number from 0 to 1, got nan"),
        ('name = "m', "site.toml is not TOML"),
    ],
)
def test_a_mistake_stops_the_start_with_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigRefused) as refusal:
        parse(text, Path("/"))
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ConfigRefused, match="cannot be read"):
        load(tmp_path / "site.toml")


def test_the_proxy_password_is_not_in_the_repr() -> None:
    settings = SiteSettings(
        "m", AggregatorAddress("hub:443", proxy="http://u:secret@proxy:3128"), FoldersSettings(), PolicySettings()
    )
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "text",
    [
        '[aggregator]\nproxy = ["http://u:secret@proxy:3128"]',
        '[aggregator]\nproxy = "https://u:secret@proxy:3128"',
        '[aggregator]\nproxy = "http://u:secret@proxy:port"',
        '[aggregator]\nproxy = "http://u:secret@[proxy:3128"',
        '[[aggregator]]\nproxy = "http://u:secret@proxy:3128"',
        '[aggregator]\nproxy = "http://u:secret@proxy:3128',
    ],
)
def test_no_refusal_repeats_the_proxy_password(text: str) -> None:
    with pytest.raises(ConfigRefused) as refusal:
        parse(f'name = "m"\n{text}', Path("/"))
    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None or "secret" not in str(refusal.value.__cause__)


def test_every_number_of_the_settings_has_bounds() -> None:
    # The proof that a refusal can always name them, and that no value is absurd.
    numbers = 0
    settings = inspect.type_info(SiteSettings)
    assert isinstance(settings, inspect.DataclassType)
    for section in settings.fields:
        for key in getattr(section.type, "fields", ()):
            if isinstance(key.type, inspect.IntType | inspect.FloatType):
                numbers += 1
                assert None not in (key.type.ge, key.type.le), key.name
    assert numbers > 25


def test_metrics_in_upper_case_are_read_with_one_warning() -> None:
    with capture_logs() as logs:
        settings = parse('name = "m"\n[policy]\nmetrics = ["HISTOGRAMS", "LOSS"]', Path("/"))
    assert settings.policy.metrics == (Metric.HISTOGRAMS, Metric.LOSS)
    assert [(line["event"], line["key"]) for line in logs] == [("old spelling read", "policy.metrics")]


def test_metrics_in_lower_case_are_read_without_a_warning() -> None:
    with capture_logs() as logs:
        settings = parse('name = "m"\n[policy]\nmetrics = ["loss"]', Path("/"))
    assert (settings.policy.metrics, logs) == ((Metric.LOSS,), [])


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigRefused, match="is not UTF-8"):
        load(tmp_path / "site.toml")
