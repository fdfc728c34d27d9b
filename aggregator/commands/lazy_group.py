"""A click group that imports a command only when that command runs, after the recipe in click's documentation.

https://click.palletsprojects.com/en/stable/complex/#lazily-loading-subcommands

The recipe imports every command to write `--help`. Here a stand-in holds the one line that help needs; a test compares
it with the command's own.
"""

import importlib

import click


class LazyCommand(click.Command):
    """Stands in for the command `name` of `module` until it is called."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    def load(self) -> click.Command:
        """Import the module and return its command."""
        command = getattr(importlib.import_module(self.module), str(self.name).replace("-", "_"))
        if not isinstance(command, click.Command):
            raise TypeError(f"expected a click command {self.name} in {self.module}, got {type(command).__name__}")
        return command


class LazyGroup(click.Group):
    """A group whose commands may be stand-ins."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest
