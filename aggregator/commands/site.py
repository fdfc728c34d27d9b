"""hemofed-aggregator site: hospitals are invited, approved, listed, revoked."""

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import print_json, print_rows
from aggregator.sites.roster import roster_notices
from aggregator.store import site_rows


@click.group()
def site() -> None:
    """Hospitals: invite, approve, list, revoke."""


@site.command("invite")
@click.argument("name")
@click.option("--auto-approve", is_flag=True, help="Approve on joining, without comparing words. For demos.")
@as_json
@click.pass_obj
def site_invite(context: CommandContext, name: str, auto_approve: bool, as_json: bool) -> None:
    """Print a one-time token for the hospital NAME. It is shown once."""
    enrolment = context.enrolment()
    token = enrolment.invite(name, auto_approve=auto_approve).text()
    hours = enrolment.settings.invitation_hours
    if as_json:
        print_json({"site": name, "token": token, "valid_hours": hours})
        return
    # Alone on standard output, so that a script can take it; the hints go to standard error.
    click.echo(token)
    click.echo(f"Hand it to {name} on a trusted way. It works once, within {hours} hours:", err=True)
    click.echo("  hemofed-site join ADDRESS TOKEN", err=True)


@site.command("list")
@as_json
@click.pass_obj
def site_list(context: CommandContext, as_json: bool) -> None:
    """Every site, and what it last said of itself."""
    app = context.app()
    with app.store.read() as session:
        rows = listings.list_sites(session)
        notices = roster_notices(session, app.settings.state.folder, app.clock())
    columns = ("site", "standing", "state", "reasons", "progress_percent", "seen_at", "words")
    print_rows(rows, columns, as_json)
    for notice in notices:
        click.echo(notice, err=True)


@site.command("approve")
@click.argument("name")
@click.option("--words", help="The six words as read to you on the telephone; without it you are asked.")
@click.pass_obj
def site_approve(context: CommandContext, name: str, words: str | None) -> None:
    """Let NAME in, after comparing its six words by telephone."""
    enrolment = context.enrolment()
    with enrolment.store.read() as session:
        fingerprint = site_rows.get(session, name).fingerprint
    if words is None:
        click.echo(f"Call {name}. Its screen must show:\n\n  {fingerprint}\n")
        click.confirm("Are these the words?", abort=True)
    elif words.split() != fingerprint.split():
        raise click.ClickException(f"expected the words of {name}, got others; do not approve, find out who joined")
    # The words go along: a host that joined with other keys since they were shown is not approved by them.
    enrolment.approve(name, fingerprint)
    click.echo(f"{name} is approved; it is let in with the next roster: roster export, sign, roster import.")


@site.command("revoke")
@click.argument("name")
@click.pass_obj
def site_revoke(context: CommandContext, name: str) -> None:
    """Shut NAME out, from its next call on. Withdraws an invitation, too."""
    context.enrolment().revoke(name)
    click.echo(f"{name} is revoked from its next call on; the next roster removes it: roster export, sign, import.")
