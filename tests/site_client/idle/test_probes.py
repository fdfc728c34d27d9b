"""The probes against this machine, and against counters written for them."""

from pathlib import Path

import pytest

from site_client.trainer.idle import machine, operator
from site_client.trainer.idle.processor import Processor
from site_client.trainer.idle.readings import OperatorPause, Unknown


def counters(proc: Path, busy: int, idle: int, own: int) -> None:
    """A /proc of hundredths of seconds: `own` of `busy` belongs to process 7."""
    (proc / "7").mkdir(parents=True, exist_ok=True)
    (proc / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n")
    (proc / "7" / "stat").write_text(f"7 (a ) b) S {'0 ' * 10}{own} 0 0 0 20\n")


def test_what_hemofed_uses_itself_is_not_others(tmp_path: Path) -> None:
    processor = Processor(tmp_path, tmp_path)
    counters(tmp_path, 1000, 5000, 400)
    assert isinstance(processor.sample(10.0, [7]).foreign_cpu, Unknown)
    counters(tmp_path, 1150, 5050, 500)
    assert processor.sample(11.0, [7]).foreign_cpu == pytest.approx(0.25)
    counters(tmp_path, 1250, 5150, 600)
    assert processor.sample(12.0, [7]).foreign_cpu == 0.0
    (tmp_path / "stat").unlink()
    assert isinstance(processor.sample(13.0, [7]).foreign_cpu, Unknown)


def test_power_supplies_tell_battery_from_mains(tmp_path: Path) -> None:
    supplies = tmp_path / "class" / "power_supply"
    supplies.mkdir(parents=True)
    assert machine.on_battery(tmp_path) is False
    for name, facts in {"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery", "status": "Full"}}.items():
        (supplies / name).mkdir()
        for key, value in facts.items():
            (supplies / name / key).write_text(value + "\n")
    assert machine.on_battery(tmp_path) is True
    (supplies / "AC" / "online").write_text("1\n")
    assert machine.on_battery(tmp_path) is False
    assert isinstance(machine.on_battery(tmp_path / "nowhere"), Unknown)


def test_a_program_is_found_by_name_and_hidden_processes_are_unknown(tmp_path: Path) -> None:
    assert isinstance(machine.running(["viewer"], tmp_path), Unknown)
    for number, name in (("1", "init"), ("44", "a-long-name-tha")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "comm").write_text(name + "\n")
    found = machine.running(["viewer", "a-long-name-that-is-cut"], tmp_path)
    assert found == frozenset({"a-long-name-that-is-cut"})


def test_memory_and_disk_of_this_machine_are_read(tmp_path: Path) -> None:
    for value in (machine.memory_free_gib(), machine.disk_free_gib([tmp_path / "not" / "yet"])):
        assert not isinstance(value, Unknown)
        assert value > 0


def test_a_pause_that_cannot_be_understood_pauses(tmp_path: Path) -> None:
    assert operator.current(tmp_path) is None
    (tmp_path / "pause.json").write_text("{")
    assert operator.current(tmp_path) == OperatorPause(None)
    assert operator.resume(tmp_path)
    assert not operator.resume(tmp_path)
