"""federation.token: one text per token, typing errors told apart, the secret never shown; six words for the phone."""

import zlib

import pytest
from federation.errors import TokenRefused
from federation.fingerprint import six_words
from federation.token import Token
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic

TOKEN = Token("st-mary", bytes(range(32)), bytes(range(100, 132)))


@given(
    site=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True),
    secret=st.binary(min_size=32, max_size=32),
    ca=st.binary(min_size=32, max_size=32),
)
def test_a_token_comes_back_as_it_was(site: str, secret: bytes, ca: bytes) -> None:
    token = Token(site, secret, ca)
    assert Token.parse(token.text()) == token


def test_spaces_around_a_pasted_token_are_forgiven() -> None:
    assert Token.parse(f"  {TOKEN.text()}\n") == TOKEN


def test_the_form_is_the_documented_one() -> None:
    prefix, site, secret, ca, crc = TOKEN.text().split("_")
    assert (prefix, site, len(secret), len(ca), len(crc)) == ("hf1", "st-mary", 52, 52, 8)


@given(position=st.integers(0, len(TOKEN.text()) - 1), letter=st.characters(codec="utf-8"))
def test_one_mistyped_letter_is_refused_without_repeating_the_token(position: int, letter: str) -> None:
    text = TOKEN.text()[:position] + letter + TOKEN.text()[position + 1 :]
    if text.strip() == TOKEN.text():
        return
    with pytest.raises(TokenRefused) as refused:
        Token.parse(text)
    assert TOKEN.text().split("_")[2][5:40] not in str(refused.value)


@given(length=st.integers(0, len(TOKEN.text()) - 1))
def test_a_token_cut_short_is_refused(length: int) -> None:
    with pytest.raises(TokenRefused):
        Token.parse(TOKEN.text()[:length])


@given(text=st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(TokenRefused):
        Token.parse(text)


def test_spare_bits_at_the_end_of_base32_make_no_second_form() -> None:
    _, site, secret, ca, _ = TOKEN.text().split("_")
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    other = secret[:-1] + alphabet[alphabet.index(secret[-1]) ^ 1]
    body = f"hf1_{site}_{other}_{ca}"
    with pytest.raises(TokenRefused, match="canonical"):
        Token.parse(f"{body}_{zlib.crc32(body.encode()):08x}")


def test_the_secret_shows_in_no_representation() -> None:
    assert "\\x01\\x02" not in repr(TOKEN)
    assert "secret" not in repr(TOKEN)


def test_a_new_token_takes_its_secret_from_the_given_source() -> None:
    assert Token.new("a", bytes(32), lambda length: b"\x07" * length).secret == b"\x07" * 32


@pytest.mark.parametrize(("secret", "ca"), [(bytes(31), bytes(32)), (bytes(32), bytes(33))])
def test_a_secret_or_fingerprint_of_another_length_is_refused(secret: bytes, ca: bytes) -> None:
    with pytest.raises(TokenRefused):
        Token("a", secret, ca)


def test_the_six_words_are_always_the_same_six() -> None:
    assert six_words(b"", b"", b"") == "credit thought mail indoor damage film"


def test_six_words_come_from_the_list_and_change_with_every_key() -> None:
    words = {
        six_words(*keys) for keys in ((b"a", b"b", b"c"), (b"x", b"b", b"c"), (b"a", b"x", b"c"), (b"a", b"b", b"x"))
    }
    assert len(words) == 4
    for phrase in words:
        assert len(phrase.split()) == 6
        assert set(phrase.split()) <= set(Mnemonic("english").wordlist)


def test_moving_a_byte_from_one_key_to_the_next_changes_the_words() -> None:
    assert six_words(b"ab", b"c", b"d") != six_words(b"a", b"bc", b"d")
