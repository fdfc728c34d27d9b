"""hemofed-site, the command of hospital IT: the table of its commands, and its exit statuses.

0 is success, 1 an expected failure, which is one sentence on standard error, 2 one in which no study could be used. A
service ends with 78 when only a person can help, so that systemd does not start it again. Any other exception keeps its
traceback.
"""

from typing import Final

import click
from federation.errors import FederationError

from site_client.commands.lazy_group import LazyCommand, LazyGroup
from site_client.errors import NothingUsable, SiteError
from site_client.logging_setup import log_to_stderr, priority

_FAILED: Final = 1
_NOTHING_USABLE: Final = 2
_NEEDS_A_PERSON: Final = 78  # EX_CONFIG of sysexits.h; RestartPreventExitStatus= of the units
_SERVICES: Final = ("agent", "trainer", "receiver")
_HERE: Final = "site_client.commands"
# Each sentence repeats the first one of its command's own help, which a test compares.
_COMMANDS: Final = {
    "agent": LazyCommand(f"{_HERE}.services", "agent", "Run the agent: it has the network and reads no patient data."),
    "benchmark": LazyCommand("site_client.benchmark.command", "benchmark", "Train every network on the same patients."),
    "calibrate": LazyCommand(
        "site_client.inference.command", "calibrate_command", "Fit a model to this site's patients."
    ),
    "catalog": LazyCommand(f"{_HERE}.catalog", "catalog", "Scan the export and its labels, and count usable studies."),
    "doctor": LazyCommand(f"{_HERE}.checks", "doctor", "Check this installation, and show how to mend each fault."),
    "evaluate": LazyCommand(
        "site_client.inference.command", "evaluate_command", "Evaluate a model on labelled studies."
    ),
    "init-weights": LazyCommand(
        f"{_HERE}.weights", "init_weights", "Write initial weights of a network, for a coordinator."
    ),
    "join": LazyCommand(f"{_HERE}.enrolment", "join", "Enrol this host with the consortium."),
    "leave": LazyCommand(f"{_HERE}.enrolment", "leave", "Leave the consortium for good, and tell the coordinator."),
    "ledger": LazyCommand(f"{_HERE}.ledger", "ledger", "Read and verify the ledger of every message that left."),
    "pack": LazyCommand("site_client.packing.command", "pack_command", "Pack a model for hosts without torch."),
    "pause": LazyCommand(
        f"{_HERE}.control", "pause", "Pause training within a second, against any decision of the idle gate."
    ),
    "phantom": LazyCommand("site_client.phantom.command", "phantom", "Write synthetic head CT studies with labels."),
    "plan": LazyCommand(f"{_HERE}.plan", "plan", "Show training plans, and approve or refuse them."),
    "predict": LazyCommand(
        "site_client.inference.command", "predict_command", "Ask a model about head CTs. Research only."
    ),
    "privacy": LazyCommand(
        f"{_HERE}.privacy", "privacy", "Show and verify what this hospital's patients have given up in all runs."
    ),
    "prove": LazyCommand(
        f"{_HERE}.checks", "prove", "Show the wall on this machine: attempts that the kernel refuses."
    ),
    "receiver": LazyCommand(
        f"{_HERE}.services",
        "receiver",
        "Run the optional receiver: it takes images from the archive on the LAN, and has no way out.",
    ),
    "roster": LazyCommand(
        f"{_HERE}.roster", "roster", "Show the hospitals of the consortium, and approve those added."
    ),
    "resume": LazyCommand(f"{_HERE}.control", "resume", "Take a pause back: the idle gate decides again."),
    "run": LazyCommand(f"{_HERE}.services", "run", "Run agent and trainer in the foreground, without systemd."),
    "status": LazyCommand(
        f"{_HERE}.control", "status", "Show the state of agent and trainer, and the age of each value."
    ),
    "trainer": LazyCommand(
        f"{_HERE}.services", "trainer", "Run the trainer: it reads patient data and has no network."
    ),
}


class _Root(LazyGroup):
    """Turns an expected failure into one sentence and its exit status."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        ctx.obj = tuple(ctx.args)  # the benchmark writes its own command line beside its table
        try:
            return super().invoke(ctx)
        except (SiteError, FederationError) as error:
            click.echo(f"{priority('error')}hemofed-site: {error}", err=True)
            if isinstance(error, NothingUsable):
                ctx.exit(_NOTHING_USABLE)
            is_retryable = isinstance(error, SiteError) and error.retryable
            needs_a_person = ctx.invoked_subcommand in _SERVICES and not is_retryable
            ctx.exit(_NEEDS_A_PERSON if needs_a_person else _FAILED)


@click.group(cls=_Root, lazy_commands=_COMMANDS)
@click.version_option(package_name="hemofed")
def main() -> None:
    """Take part in federated training; no image leaves this hospital."""
    log_to_stderr(tracebacks=False)  # a command may read DICOM; the agent turns tracebacks on


if __name__ == "__main__":
    main()
