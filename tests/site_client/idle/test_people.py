"""People at the machine: the terminal itself says when it was touched, and a session that holds training is named."""

import os
import pty
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federation.vocabulary import StateReason

from site_client.bus import Bus, BusError
from site_client.config import IdleSettings, SiteSettings
from site_client.doctor.data import checks as data
from site_client.trainer.idle import daemons
from site_client.trainer.idle.readings import NEVER_S, LoginSession, Signals, Unknown
from site_client.trainer.idle.rules import needs_of_others

TOUCHED_JUST_NOW = {
    "IdleHint": False,
    "IdleSinceHintMonotonic": 0,
}  # logind's word about every session, for half an hour


class LoggedIn(Bus):
    """logind with these sessions."""

    def __init__(self, *sessions: dict[str, Any]) -> None:
        super().__init__()
        self._sessions = sessions

    def call(self, service: str, path: str, interface: str, method: str, *arguments: tuple[str, Any]) -> Any:
        return ([("", 0, "", "", number) for number in range(len(self._sessions))],)

    def get_all(self, service: str, path: Any, interface: str) -> dict[str, Any]:
        facts: dict[str, Any] = self._sessions[path]
        return {"Class": "user", "State": "active", "Remote": False, "Type": "tty", "TTY": ""} | facts


def session(name: str, **facts: Any) -> dict[str, Any]:
    return TOUCHED_JUST_NOW | {"Id": name} | facts


def test_the_terminal_s_own_time_counts_and_not_logind_s(tmp_path: Path) -> None:
    (tmp_path / "pts").mkdir()
    (tmp_path / "pts" / "4").touch()
    os.utime(tmp_path / "pts" / "4", (time.time() - 400, time.time()))
    (tmp_path / "tty2").touch()
    os.utime(tmp_path / "tty2", (time.time() - 90, time.time()))
    bus = LoggedIn(session("7", Remote=True, TTY="pts/4"), session("c1", TTY="tty2"))
    found = daemons.sessions(bus, 0, tmp_path)
    assert not isinstance(found, Unknown)
    assert daemons.idle_s(found, remote=True) == pytest.approx(400, abs=5)
    assert daemons.idle_s(found, remote=False) == pytest.approx(90, abs=5)


def test_input_at_a_real_terminal_moves_its_time() -> None:
    master, slave = pty.openpty()
    try:
        terminal = os.ttyname(slave).removeprefix("/dev/")
        os.utime(slave, (time.time() - 500, time.time()))
        bus = LoggedIn(session("7", Remote=True, TTY=terminal))
        assert daemons.idle_s(daemons.sessions(bus, 0), remote=True) == pytest.approx(500, abs=5)
        os.write(master, b"x\n")
        os.read(slave, 2)
        idle = daemons.idle_s(daemons.sessions(bus, 0), remote=True)
        assert not isinstance(idle, Unknown)
        assert idle < 20
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("terminal", ["pts/99", "../etc/passwd", "/etc/passwd", "pts/4/..", ""])
def test_a_terminal_that_cannot_be_read_leaves_logind_s_word(tmp_path: Path, terminal: str) -> None:
    found = daemons.sessions(LoggedIn(session("7", TTY=terminal)), 0, tmp_path)
    assert daemons.idle_s(found, remote=False) == 0.0


def test_a_desktop_is_judged_by_logind_and_not_by_the_terminal_it_was_started_on(tmp_path: Path) -> None:
    (tmp_path / "tty2").touch()
    os.utime(tmp_path / "tty2", (0, 0))
    found = daemons.sessions(LoggedIn(session("c1", TTY="tty2", Type="wayland")), 0, tmp_path)
    assert daemons.idle_s(found, remote=False) == 0.0


def test_a_session_without_a_terminal_is_told_apart_and_can_be_left_out() -> None:
    found = daemons.sessions(LoggedIn(session("7", Remote=True), session("8", Remote=True, Type="x11")), 0)
    assert not isinstance(found, Unknown)
    assert [one.is_bare for one in found] == [True, False]
    tunnel = found[:1]
    assert daemons.idle_s(tunnel, remote=True) == 0.0
    assert daemons.idle_s(tunnel, remote=True, with_bare=False) == NEVER_S


def test_the_session_that_holds_training_is_named_in_status_and_doctor(tmp_path: Path) -> None:
    held = (
        LoginSession("7", is_remote=True, terminal="", has_screen=False, idle_s=0.0),
        LoginSession("9", is_remote=True, terminal="pts/3", has_screen=False, idle_s=12.0),
        LoginSession("5", is_remote=True, terminal="pts/1", has_screen=False, idle_s=900.0),
    )
    signals = replace(Signals(), user_idle_s=NEVER_S, remote_idle_s=0.0, sessions=held)
    (reason,) = needs_of_others(signals, IdleSettings())
    assert reason.reason is StateReason.REMOTE_SESSION
    assert "session 7, which has no terminal (an ssh tunnel?)" in reason.words
    assert "session 9 on pts/3" in reason.words
    assert "session 5" not in reason.words
    ignoring = IdleSettings(bare_sessions="ignore")
    (reason,) = needs_of_others(replace(signals, remote_idle_s=12.0), ignoring)
    assert "session 7" not in reason.words
    lines = [line for line in data.check_signals(SiteSettings("mercy"), signals) if line.check == "people"]
    assert ["session 9 on pts/3" in line.found for line in lines] == [True]


def test_without_logind_people_are_unknown() -> None:
    class Nobody(Bus):
        def call(self, *_: Any) -> Any:
            raise BusError("org.freedesktop.login1 is not there")

    found = daemons.sessions(Nobody(), 0)
    assert isinstance(found, Unknown)
    assert daemons.idle_s(found, remote=True) is found
