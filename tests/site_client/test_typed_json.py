"""Typed JSON: strict, bounded before it is parsed, and silent about the refused value."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from site_client.errors import StateRefused
from site_client.records import AwareTime
from site_client.typed_json import LOCAL, SIZE_MAX, Digest, decode, encode, read_state


@dataclass(frozen=True)
class Sample:
    """One field of each kind."""

    digest: Digest
    count: Annotated[int, Meta(ge=0, le=9)]
    at: AwareTime | None = None
    names: tuple[str, ...] = ()
    folder: Path = field(default=Path(), metadata=LOCAL)


SAMPLE = Sample(Digest(bytes(32)), 3, datetime(2026, 11, 23, 9, tzinfo=UTC), ("a", "b"), Path("/somewhere"))
TEXT = (
    b'{"at":"2026-11-23T09:00:00+00:00","count":3,'
    b'"digest":"0000000000000000000000000000000000000000000000000000000000000000","names":["a","b"]}'
)


def test_a_record_is_canonical_json_and_comes_back_without_its_local_fields() -> None:
    assert encode(SAMPLE) == TEXT
    assert decode(Sample, TEXT) == replace(SAMPLE, folder=Path())
    assert type(decode(Sample, TEXT).digest) is Digest


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    assert SAMPLE.at is not None
    local = SAMPLE.at.astimezone(timezone(timedelta(hours=5)))
    assert encode(replace(SAMPLE, at=local)) == TEXT


def test_keys_with_a_default_may_be_missing_unless_the_record_has_to_be_whole() -> None:
    short = TEXT.replace(b',"names":["a","b"]', b"")
    assert decode(Sample, short).names == ()
    with pytest.raises(ValueError, match="the key 'names' is unknown or missing"):
        decode(Sample, short, whole=True)


@pytest.mark.parametrize(
    ("old", "new", "clause"),
    [
        (b'"count":3', b'"count":10', "count is out of range"),
        (b'"count":3', b'"count":true', "count is out of range"),
        (b'"count":3', b'"count":3.0', "count is out of range"),
        (b'"count":3', b'"count":"DOE^JANE"', "count is out of range"),
        (b'"count":3', b'"count":null', "count is out of range"),
        (b'"count":3,', b"", "a value is out of range"),
        (b'"names":["a","b"]', b'"names":["DOE^JANE",3]', "names is out of range"),
        (b"+00:00", b"", "at is out of range"),
        (b"0000000000000000000000000000000000", b"00", "digest is out of range"),
        (b"00000000000000000000", b"zz", "digest is out of range"),
        (b'"names"', b'"folder":"/x","names"', "the key 'folder' is unknown or missing"),
        (b'"names"', b'"patient":"DOE^JANE","names"', "the key 'patient' is unknown or missing"),
        (b"{", b"[", "it is not JSON"),
    ],
)
def test_a_mistake_is_refused_by_its_key_without_its_value(old: bytes, new: bytes, clause: str) -> None:
    with pytest.raises(ValueError, match=clause) as refusal:
        decode(Sample, TEXT.replace(old, new, 1))
    assert type(refusal.value) is ValueError  # not one of msgspec's
    assert "DOE" not in str(refusal.value)
    assert refusal.value.__cause__ is None  # a traceback would show the value
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("text", [b"[1]", b"3", b"null", b'"x"', b"", b"[" * 10_000, b"\xff", b"NaN"])
def test_anything_but_an_object_is_refused_for_a_dataclass(text: bytes) -> None:
    with pytest.raises(ValueError, match="it is not"):
        decode(Sample, text)


@given(st.binary(max_size=100))
def test_garbage_raises_one_error_only(data: bytes) -> None:
    for kind in (Sample, list[Digest], dict[str, int]):
        with suppress(ValueError):
            decode(kind, data)


def test_a_file_larger_than_the_limit_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b" " * SIZE_MAX + TEXT)
    with pytest.raises(
        StateRefused, match=f"x.json in the state folder is damaged .it is larger than {SIZE_MAX} bytes"
    ):
        read_state(Sample, tmp_path / "x.json", "remove it")


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_state(Sample, tmp_path / "x.json", "remove it") is None
