"""hemofed-aggregator site: hospitals are invited, approved, listed, suspended, given new keys or names, revoked."""

import click

from aggregator.commands import listings
from aggregator.commands.base import CommandContext, as_json
from aggregator.commands.printing import Form, facts, listing, print_json, print_rows, table
from aggregator.sites.roster import roster_notices
from aggregator.states import Role
from aggregator.store import site_rows


@click.group()
def site() -> None:
    """Hospitals: invite, approve, list, show, suspend, resume, rekey, rename, revoke."""


@site.command("invite")
@click.argument("name")
@click.option("--auto-approve", is_flag=True, help="Approve on joining, without comparing words. For demos.")
@as_json
@click.pass_obj
def site_invite(context: CommandContext, name: str, auto_approve: bool, as_json: bool) -> None:
    """Print a one-time token for the hospital NAME. It is shown once."""
    _invite(context, name, as_json, auto_approve=auto_approve)


@site.command("rekey")
@click.argument("name")
@as_json
@click.pass_obj
def site_rekey(context: CommandContext, name: str, as_json: bool) -> None:
    """Print a token with which NAME joins again with new keys: its disk died, or it moves to another machine.

    The old keys stay in force until you approve the new ones. Then the custodian signs a roster with them.
    """
    _invite(context, name, as_json, replaces=name)


@site.command("rename")
@click.argument("name")
@click.argument("new_name")
@as_json
@click.pass_obj
def site_rename(context: CommandContext, name: str, new_name: str, as_json: bool) -> None:
    """Print a token with which NAME joins as NEW_NAME. NAME is revoked when you approve NEW_NAME.

    A name is part of certificate, roster and every message, so the hospital has to join again.
    """
    if name == new_name:
        raise click.ClickException(f"expected another name than {name}; `site rekey` gives it new keys")
    _invite(context, new_name, as_json, replaces=name)


def _invite(
    context: CommandContext, name: str, as_json: bool, *, auto_approve: bool = False, replaces: str | None = None
) -> None:
    enrolment = context.enrolment()
    token = enrolment.invite(name, auto_approve=auto_approve, replaces=replaces).text()
    hours = enrolment.settings.invitation_hours
    if as_json:
        print_json({"site": name, "token": token, "valid_hours": hours})
        return
    # Alone on standard output, so that a script can take it; the hints go to standard error.
    click.echo(token)
    click.echo(f"Hand it to {name} on a trusted way. It works once, within {hours} hours:", err=True)
    click.echo("  hemofed-site join ADDRESS TOKEN", err=True)


@site.command("list")
@listing
@click.pass_obj
def site_list(context: CommandContext, form: Form) -> None:
    """Every site, and what it last said of itself."""
    app = context.app()
    with app.store.read() as session:
        rows = listings.list_sites(session, app.clock(), app.settings.pacing)
        notices = roster_notices(session, app.settings.state.folder, app.clock())
    columns = ("site", "standing", "state", "reasons", "progress_percent", "last_report", "words", "new_words")
    print_rows(rows, columns, form)
    for notice in notices:
        click.echo(notice, err=True)


@site.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def site_show(context: CommandContext, name: str, as_json: bool) -> None:
    """Everything about NAME: standing, keys, certificate, last report, its newest rounds and audit rows.

    A viewer sees no audit rows.
    """
    app = context.app()
    with app.store.read() as session:
        row = listings.describe_site(session, name, app.clock(), app.settings.pacing)
    if not context.may(app, Role.AUDITOR):
        del row["audit"]
    if as_json:
        print_json(row)
        return
    tables = {"seats": ("run", "round", "state", "decline_reason"), "audit": ("at", "actor", "before", "after", "why")}
    click.echo(facts({key: value for key, value in row.items() if key not in tables}))
    for key, columns in tables.items():
        if key not in row:
            continue
        rows = row[key]
        # describe_site puts lists of mappings there.
        assert isinstance(rows, list)
        click.echo(f"\n{key}\n{table(rows, columns)}")


@site.command("suspend")
@click.argument("name")
@click.option("--why", default="suspended by the coordinator", help="For the audit.")
@click.pass_obj
def site_suspend(context: CommandContext, name: str, why: str) -> None:
    """Let no new round take NAME until `site resume`. It stays in the roster and sees it in its own status."""
    context.enrolment().suspend(name, why)
    click.echo(f"{name} is suspended: no new round takes it. `site resume {name}` takes it back.")


@site.command("resume")
@click.argument("name")
@click.option("--why", default="resumed by the coordinator", help="For the audit.")
@click.pass_obj
def site_resume(context: CommandContext, name: str, why: str) -> None:
    """Let rounds take NAME again."""
    context.enrolment().resume(name, why)
    click.echo(f"{name} takes part again, at the latest in the next round.")


@site.command("approve")
@click.argument("name")
@click.option("--words", help="The six words as read to you on the telephone; without it you are asked.")
@click.pass_obj
def site_approve(context: CommandContext, name: str, words: str | None) -> None:
    """Let NAME in, after comparing its six words by telephone."""
    enrolment = context.enrolment()
    with enrolment.store.read() as session:
        candidate = site_rows.candidate(session, name)
        fingerprint = site_rows.get(session, name).fingerprint if candidate is None else candidate.fingerprint
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
