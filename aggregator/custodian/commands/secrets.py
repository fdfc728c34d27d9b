"""Gets the passphrase or the PIN for commands: from a person, or from a file for scripts. Never from an argument."""

from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)

# Other users of a machine can read the arguments of a process, but not a file of mode 0600.
passphrase_file = click.option("--passphrase-file", type=FILE, help="Read the passphrase or PIN from the first line.")


def ask_secret(file: Path | None, prompt: str = "Passphrase or PIN", *, new: bool = False) -> str:
    """Return the first line of the file, or ask; a new passphrase is asked for twice."""
    if file is not None:
        return file.read_text(encoding="utf-8").split("\n")[0]
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=new, err=True))
