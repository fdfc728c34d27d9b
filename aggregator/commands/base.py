"""The start of every command of the coordinator: its state folder, and the printing of refusals.

The root imports this module for `--help`, so the modules that need SQLAlchemy are imported in the functions that use
them. They take half a second.
"""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from federation.errors import FederationError

from aggregator.commands.lazy_group import LazyGroup
from aggregator.config import AggregatorSettings, load_settings
from aggregator.errors import AggregatorError, NotAllowed, NotFound, StateFolderRefused
from aggregator.states import Role

if TYPE_CHECKING:
    from aggregator.context import AppContext
    from aggregator.sites.authority import Authority
    from aggregator.sites.enrolment import EnrolmentService

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
of_run = click.option(
    "--run",
    "run_id",
    metavar="RUN",
    help="The beginning of its id; default: in progress, else newest.",
)


class RootGroup(LazyGroup):
    """Turns refusals into one line and exit code 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and print what it refuses.

        Raises:
            click.ClickException: For a refusal, a full disk, a file that cannot be read, a locked database.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click handles them; a closed output ends the program without a word
        except (AggregatorError, FederationError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise click.ClickException(f"{error.strerror or error}{where}; put it right and try again") from error
        except Exception as error:
            # A command that does not use the database has not imported it, and never gets here with its error.
            from sqlalchemy.exc import DatabaseError, OperationalError

            if type(error) is DatabaseError:  # SQLite's word for a damaged file
                from aggregator.store.audit_mark import RESTORE

                raise click.ClickException(f"expected an intact database, got: {error.orig}; {RESTORE}") from error
            if not isinstance(error, OperationalError):
                raise
            sentence = f"the database refused: {error.orig}; is the disk full, or another program holding it?"
            raise click.ClickException(sentence) from error


@dataclass(frozen=True)
class CommandContext:
    """The argument of every command."""

    config: Path  # aggregator.toml
    as_name: str | None = None  # the person who acts; None: the one named as the Unix user

    def settings(self) -> AggregatorSettings:
        """Read aggregator.toml.

        Raises:
            ConfigRefused: When it cannot be used.
        """
        return load_settings(self.config)

    def require_owner(self, folder: Path) -> None:
        """Keep root out of the state folder of another user.

        Raises:
            StateFolderRefused: When root would leave files there that the service cannot open.
        """
        if os.geteuid() != 0 or not folder.exists() or (uid := folder.stat().st_uid) == 0:
            return
        try:
            owner = pwd.getpwuid(uid).pw_name
        except KeyError:  # the account was removed, the folder stayed
            owner = f"#{uid}"
        raise StateFolderRefused(
            f"expected {owner}, the owner of {folder}, got root, whose files the service could not open; "
            f"type `runuser -u {owner} -- hemofed-aggregator ...`"
        )

    @property
    def is_initialised(self) -> bool:
        """Whether there are settings and a state folder, so that `app` connects."""
        # `init` writes this file last, so with it everything else of the CA is there.
        return self.config.exists() and (self.settings().state.folder / "ca" / "ca.key").exists()

    def app(self, *, any_revision: bool = False) -> "AppContext":
        """Connect to the state folder.

        Args:
            any_revision: Whether tables of another version are taken, too.

        Raises:
            StateFolderRefused: Before `init`, after an upgrade before `serve` has brought the tables up to date, or as
                root in another user's folder.
            NotFound: When `--as` names a person who is not listed.
        """
        from aggregator.context import open_context
        from aggregator.migrations import head_revision, revision_of
        from aggregator.store import audit_mark

        settings = self.settings()
        self.require_owner(settings.state.folder)
        if not self.is_initialised:
            raise StateFolderRefused(f"{settings.state.folder} holds no CA; run `hemofed-aggregator init` first")
        app = open_context(settings)
        revision, newest = revision_of(app.store.engine), head_revision()
        if revision is None:
            # First: where there was an audit, `init` would begin anew with none of the hospitals.
            audit_mark.check(app.store, settings.state.folder)
            raise StateFolderRefused(f"{settings.state.folder} holds no tables; run `hemofed-aggregator init` again")
        if revision != newest and not any_revision:
            raise StateFolderRefused(
                f"expected a database of revision {newest}, got {revision}; start `hemofed-aggregator serve` of this "
                "version, which brings it up to date"
            )
        if self.as_name is not None and revision == newest:
            # Also where any role will do: a name that was mistyped is not somebody.
            self.actor(app, Role.VIEWER)
        return app

    def actor(self, app: "AppContext", role: Role = Role.OPERATOR) -> str:
        """Return the audit's name for the person who acts: person:<name>, or unix:<name> for one who is not listed.

        A user who may write to the state folder can do everything with it. So roles keep listed people from mistakes,
        and a Unix user who is not listed may do all.

        Args:
            app: The aggregator.
            role: The least role that may do this.

        Raises:
            NotFound: When `--as` names a person who is not listed.
            NotAllowed: When the person's role is less.
        """
        from aggregator.store import people

        name = self.as_name or unix_user()
        with app.store.read() as session:
            person = people.find(session, name)
        if person is None and self.as_name is not None:
            raise NotFound(f"no administrator {name!r}; `admin list` shows those there are")
        if person is None:
            return f"unix:{name}"
        if list(Role).index(person.role) < list(Role).index(role):
            raise NotAllowed(f"expected a person who is {role} or more, {name} is {person.role}; ask an administrator")
        return f"person:{name}"

    def may(self, app: "AppContext", role: Role) -> bool:
        """Whether the person who acts has this role or more.

        Raises:
            NotFound: When `--as` names a person who is not listed.
        """
        try:
            self.actor(app, role)
        except NotAllowed:
            return False
        return True

    def expect(self, role: Role) -> None:
        """Let only persons pass who have this role or more, for commands that take a database of any version.

        Raises:
            StateFolderRefused: Before `init`.
            NotFound, NotAllowed: See `actor`.
        """
        from aggregator.migrations import head_revision, revision_of

        app = self.app(any_revision=True)
        # A database of an older version has no roles, and is backed up before it gets them.
        if revision_of(app.store.engine) == head_revision():
            self.actor(app, role)

    def enrolment(self) -> "EnrolmentService":
        """Connect to the state folder and read the CA, for a person who may change who takes part.

        Raises:
            StateFolderRefused: Before `init`, or without a usable CA.
            NotFound, NotAllowed: See `actor`.
        """
        from aggregator.sites.enrolment import EnrolmentService

        app = self.app()
        actor = self.actor(app)
        return EnrolmentService(app.store, load_authority(app), app.settings.enrolment, app.clock, app.random, actor)


def unix_user() -> str:
    """Return the name of the person at the keyboard: before `sudo`, where it was used."""
    user = os.environ.get("SUDO_USER")
    if user:
        return user
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.getuid())


def load_authority(app: "AppContext") -> "Authority":
    """Read the CA of a state folder.

    Raises:
        StateFolderRefused: When a file of it is missing or unreadable.
    """
    from aggregator.sites.authority import Authority

    return Authority(app.settings.state.folder / "ca", app.clock)
