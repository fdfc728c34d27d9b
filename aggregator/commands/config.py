"""hemofed-aggregator config: aggregator.toml is checked before the service reads it."""

import click
import msgspec

from aggregator.commands.base import CommandContext
from aggregator.commands.doctor import show
from aggregator.commands.printing import Form, listing, print_json
from aggregator.config import AggregatorSettings
from aggregator.health.installation import Finding, Severity, settings_findings
from aggregator.store import open_store


@click.group()
def config() -> None:
    """The settings: check, show."""


@config.command("check")
@listing
@click.pass_obj
def config_check(context: CommandContext, form: Form) -> None:
    """Read the settings as `serve` would, and say what you may not have meant. Needs no state folder.

    Exit status 1 if `serve` would refuse them.
    """
    settings = context.settings()
    open_store(settings.database_url).close()  # refuses a database whose driver is not installed
    changed = sorted(_changed(settings))
    words = f"{context.config} is valid; it sets {', '.join(changed) or 'nothing but defaults'}"
    show([Finding("settings", Severity.OK, words), *settings_findings(settings)], form)


@config.command("show")
@click.pass_obj
def config_show(context: CommandContext) -> None:
    """Print every setting in force, defaults included, as JSON. A password in state.database is left out."""
    settings = context.settings()
    tables = msgspec.to_builtins(settings, enc_hook=str)
    tables["state"]["database"] = _without_password(settings)
    print_json(tables)


def _changed(settings: AggregatorSettings) -> list[str]:
    before = msgspec.to_builtins(AggregatorSettings(), enc_hook=str)
    after = msgspec.to_builtins(settings, enc_hook=str)
    return [f"{table}.{key}" for table, keys in after.items() for key in keys if keys[key] != before[table][key]]


def _without_password(settings: AggregatorSettings) -> str:
    from sqlalchemy.engine import make_url

    return make_url(settings.database_url).render_as_string(hide_password=True)
