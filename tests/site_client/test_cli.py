"""The command line: help imports no heavy library, every command of the table loads, failures have exit statuses."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from site_client.cli import main

HEAVY = ("torch", "grpc", "sqlalchemy", "pydicom", "numpy")
LISTING = f"""
import sys
from site_client.cli import main
try:
    main(["--help"])
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("loaded:", loaded, file=sys.stderr)
"""


def test_help_lists_every_command_and_imports_no_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "loaded: []"
    listed = {line.split()[0] for line in done.stdout.split("Commands:\n")[1].splitlines() if line[2:3].strip()}
    assert listed == set(main.lazy_commands)


@pytest.mark.parametrize("name", sorted(main.lazy_commands))
def test_every_command_of_the_table_loads_under_its_name(name: str) -> None:
    lazy = main.lazy_commands[name]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    if lazy.module.startswith("site_client.commands"):  # the list shows the command's own first sentence
        assert command.help is not None
        assert command.help.split("\n\n")[0] == lazy.help


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["nope"])
    assert (result.exit_code, "No such command 'nope'" in result.output) == (2, True)


@pytest.mark.parametrize(("command", "status"), [("status", 1), ("agent", 78), ("trainer", 78)])
def test_a_failure_is_one_sentence_and_a_service_says_that_it_needs_a_person(
    tmp_path: Path, command: str, status: int
) -> None:
    (tmp_path / "site.toml").write_text('nme = "mercy"')
    result = CliRunner().invoke(main, [command, "--config", str(tmp_path / "site.toml")])
    assert result.exit_code == status
    assert result.output == "hemofed-site: site.toml: nme is unknown; nearest is name\n"


def test_a_warning_does_not_mix_with_a_json_answer(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "mercy"\n[policy]\nmetrics = ["LOSS"]\n[folders]\nstate = "state"\n')
    command = [sys.executable, "-m", "site_client.cli", "status", "--json", "--config", str(tmp_path / "site.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("{")
    assert "old spelling read" in done.stderr
