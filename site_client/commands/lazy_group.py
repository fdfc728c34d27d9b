"""A group whose commands are imported when they are called, after click's own recipe "Lazily Loading Subcommands".

The agent must start without torch and pydicom, the trainer without grpc, and help must not wait for any of them. So
the list of commands shows the sentence that stands beside each name, without importing the command.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class LazyCommand:
    """A command that is not imported yet."""

    module: str
    name: str  # of the click command in the module
    help: str  # one sentence for the list of commands

    def load(self) -> click.Command:
        """Import the command."""
        command = getattr(importlib.import_module(self.module), self.name)
        # The table in cli.py names click commands only; a test loads every one.
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """A group with `lazy_commands`, by name."""

    def __init__(self, *args: Any, lazy_commands: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands = lazy_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted(self.lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of this name."""
        command = self.lazy_commands.get(cmd_name)
        return None if command is None else command.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy_commands[name].help) for name in self.list_commands(ctx)])
