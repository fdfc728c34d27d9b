"""hemofed-predict, the command of a host that answers with a packed model.

Exit statuses as those of hemofed-site: 0 is success, 1 an expected failure, which is one sentence on standard error,
2 one in which no study could be used.
"""

import json
from pathlib import Path
from typing import Final

import click
from federation.errors import FederationError

from site_client.errors import NothingUsable, SiteError
from site_client.files import replace_file
from site_client.logging_setup import log_to_stderr, priority

_FAILED: Final = 1
_NOTHING_USABLE: Final = 2
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


class _Program(click.Command):
    """Turns an expected failure into one sentence and its exit status."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (SiteError, FederationError) as error:
            click.echo(f"{priority('error')}hemofed-predict: {error}", err=True)
            ctx.exit(_NOTHING_USABLE if isinstance(error, NothingUsable) else _FAILED)


@click.command(cls=_Program, context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--bundle", "bundle_file", required=True, type=_FILE, help="As `hemofed-site pack` writes it.")
@click.option(
    "--signer",
    required=True,
    envvar="HEMOFED_SIGNER",
    show_envvar=True,
    help="The key that signed it, 64 hex digits, as the hospital that packed it tells you.",
)
@click.option("--threads", default=0, type=click.IntRange(0), help="0: one a core.")
@click.option("--out", type=_FILE, help="Also every slice as JSON, with the names of its files below FOLDER.")
@click.option("--table", type=_FILE, help="Also CSV: a row a study (slice 0) and a row a slice, without names.")
@click.version_option(package_name="hemofed")
def main(folder: Path, bundle_file: Path, signer: str, threads: int, out: Path | None, table: Path | None) -> None:
    """Ask a packed model about every head CT in FOLDER, one study or many. Not for clinical use.

    Exit status 2: no study of the folder can be used.
    """
    log_to_stderr(tracebacks=False)  # it reads DICOM
    # Late: help must not wait for them. The reader process imports its decoders at the same time as we ONNX Runtime.
    from site_client.ingest.files.readers import shared_readers

    shared_readers().start()
    from site_client.bedside.bundle import read_bundle, signer_of
    from site_client.bedside.folder import as_json, as_table, as_text, predict_folder
    from site_client.bedside.graphs import PackedModel

    bundle = read_bundle(bundle_file, signer_of(signer))
    description = bundle.description
    model = PackedModel(bundle.trunk, bundle.head, threads)
    predictions = predict_folder(model.answer, folder, description.image_size_px, description.slices_max)
    click.echo(as_text(predictions))
    if out is not None:
        document = as_json(predictions, folder, description.as_json())
        replace_file(out, (json.dumps(document, indent=1) + "\n").encode())
    if table is not None:
        replace_file(table, as_table(predictions.predictions).encode())
    # Last: the files that were asked for say why nothing could be used.
    if not predictions.predictions:
        raise NothingUsable(f"expected a head CT that can be used, got none in {predictions.report.files_seen} files")


if __name__ == "__main__":
    main()
