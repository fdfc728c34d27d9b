"""hemofed-aggregator serve: the service."""

import click

from aggregator.commands.base import CommandContext
from aggregator.migrations import upgrade
from aggregator.serve import serve as serve_forever
from aggregator.store import audit_mark


@click.command()
@click.pass_obj
def serve(context: CommandContext) -> None:
    """Listen for sites, run the rounds, show the dashboard.

    Until SIGTERM or Ctrl-C; then calls in progress get a few seconds. Any moment is a good one to stop.
    """
    app = context.app(any_revision=True)
    # Before the upgrade, which would write into a damaged database.
    audit_mark.check(app.store, app.settings.state.folder)
    upgrade(app.store.engine)
    app.store.close()
    serve_forever(app.settings)
