"""People on the command line: roles, passwords, and whom the audit names."""

import getpass
import os

import pytest

from aggregator.commands.base import unix_user
from tests.aggregator.conftest import Host
from tests.aggregator.test_cli_aggregator import Console, console, fresh

__all__ = ["console", "fresh"]  # fixtures
PASSWORD = "correct horse battery\n"


@pytest.fixture(autouse=True)
def without_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)


@pytest.fixture
def people(console: Console) -> Console:
    """One person of each role."""
    for role in ("viewer", "auditor", "operator", "admin"):
        add = ("admin", "add", f"{role}-ann", "--role", role, "--password-stdin")
        assert console(*add, stdin=PASSWORD).exit_code == 0
    return console


def newest(console: Console) -> tuple[str, str, str]:
    [row] = console.json("audit", "--limit", "1")
    return row["actor"], row["subject"], row["after"]


def test_the_audit_names_the_unix_user_who_is_no_listed_person(console: Console) -> None:
    console("site", "invite", "st-mary")
    assert newest(console) == (f"unix:{getpass.getuser()}", "site:st-mary", "invited")


def test_before_sudo_the_person_had_another_name(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    console("site", "invite", "st-mary")
    assert newest(console)[0] == "unix:ada"
    console("admin", "add", "ada", "--password-stdin", stdin=PASSWORD)
    console("site", "invite", "charite")
    assert newest(console)[0] == "person:ada"


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert unix_user() == "4000000000"


def test_a_person_acts_by_name_and_a_stranger_does_not(people: Console) -> None:
    assert people("--as", "operator-ann", "site", "invite", "st-mary").exit_code == 0
    assert newest(people) == ("person:operator-ann", "site:st-mary", "invited")
    assert "no administrator 'eve'" in people.refused("--as", "eve", "site", "invite", "charite")


NEED = [
    ("auditor", ("audit",)),
    ("auditor", ("audit", "--verify")),
    ("admin", ("backup", "absent")),
    ("operator", ("site", "invite", "charite")),
    ("operator", ("site", "suspend", "st-mary")),
    ("operator", ("run", "pause")),
    ("operator", ("roster", "import", "absent")),
    ("operator", ("model", "export", "absent")),
    ("admin", ("admin", "role", "viewer-ann", "operator")),
    ("admin", ("admin", "passwd", "viewer-ann", "--password-stdin")),
    ("admin", ("admin", "remove", "viewer-ann")),
    ("admin", ("admin", "add", "eve", "--password-stdin")),
]


def test_a_role_below_the_least_is_refused_before_anything_happens(people: Console) -> None:
    roles = ("viewer", "auditor", "operator", "admin")
    entries = len(people.json("audit"))  # by a Unix user who is not listed
    for least, act in NEED:
        for role in roles[: roles.index(least)]:
            refusal = people.refused("--as", f"{role}-ann", *act, stdin=PASSWORD)
            assert f"expected a person who is {least} or more, {role}-ann is {role}" in refusal
    assert len(people.json("audit")) == entries


def test_everybody_may_look(people: Console) -> None:
    for role in ("viewer", "auditor", "operator", "admin"):
        for command in (("site", "list"), ("run", "list"), ("roster", "show"), ("admin", "list")):
            assert people("--as", f"{role}-ann", *command).exit_code == 0


def test_a_name_that_is_nobody_s_is_refused_where_everybody_may_look(people: Console) -> None:
    for command in (("site", "list"), ("audit",), ("doctor",), ("backup", "absent"), ("run", "list")):
        assert "no administrator 'eve'" in people.refused("--as", "eve", *command)


def test_only_who_may_read_the_audit_sees_its_rows_about_a_site_or_a_run(people: Console) -> None:
    people.join(people.json("site", "invite", "st-mary", "--auto-approve")["token"], Host())
    for role, sees in (("viewer", False), ("auditor", True), ("operator", True), ("admin", True)):
        row = people.json("--as", f"{role}-ann", "site", "show", "st-mary")
        assert ("audit" in row) == sees
        assert ("invited" in people("--as", f"{role}-ann", "site", "show", "st-mary").stdout) == sees


def test_roles_are_listed_changed_and_audited(people: Console) -> None:
    assert people("--as", "admin-ann", "admin", "role", "viewer-ann", "operator").exit_code == 0
    roles = {row["name"]: row["role"] for row in people.json("admin", "list")}
    assert roles == {
        "admin-ann": "admin",
        "auditor-ann": "auditor",
        "operator-ann": "operator",
        "viewer-ann": "operator",
    }
    [row] = people.json("audit", "--limit", "1")
    assert (row["actor"], row["before"], row["after"]) == ("person:admin-ann", "viewer", "operator")
    assert "no administrator" in people.refused("admin", "role", "eve", "viewer")
    assert people("admin", "role", "viewer-ann", "king").exit_code == 2


def test_a_password_is_changed_and_a_short_one_refused(people: Console) -> None:
    passwd = ("admin", "passwd", "viewer-ann", "--password-stdin")
    assert "logged out everywhere" in people(*passwd, stdin="another horse battery\n").stdout
    assert newest(people)[1:] == ("administrator:viewer-ann", "password changed")
    assert "at least 12" in people.refused(*passwd, stdin="short\n")
    assert "at most 1024, got 1025" in people.refused(*passwd, stdin="x" * 1025 + "\n")
    # Before it asks for one.
    assert "no administrator" in people.refused("admin", "passwd", "eve", stdin="")


@pytest.mark.parametrize("name", ["", "two words", "x\n2026-11-30T21:05:20+00:00  person:ann", "n" * 65, "unix:root"])
def test_the_name_of_a_person_is_one_word(console: Console, name: str) -> None:
    said = console.refused("admin", "add", name, "--password-stdin", stdin=PASSWORD)
    assert "expected a name of 1 to 64 letters" in said
    assert len(said.splitlines()) == 1


def test_no_reason_of_a_change_looks_like_a_row_of_the_audit(console: Console) -> None:
    console.join(console.json("site", "invite", "st-mary", "--auto-approve")["token"], Host())
    forged = "because\n2026-11-30T21:05:20+00:00  person:ann  site:north  -  approved\x1b[2K"
    console("site", "suspend", "st-mary", "--why", forged)
    assert console.json("audit")[0]["why"] == forged
    for command in (("audit",), ("site", "show", "st-mary")):
        shown = console(*command).stdout
        assert "because\\n2026" in shown
        assert "\x1b" not in shown
