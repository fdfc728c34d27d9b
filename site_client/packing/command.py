"""The command `hemofed-site pack`."""

from pathlib import Path

import click

from site_client.bedside.bundle import write_bundle
from site_client.config import load as load_settings
from site_client.inference.model_file import load
from site_client.inference.options import CALIBRATION, CONFIG, FILE, MODEL, SIZE, SLICES, THREADS
from site_client.packing.key import packing_key
from site_client.packing.pack import pack
from site_client.training.compute import choose
from site_client.training.prepare import labelled_split


@click.command("pack", context_settings={"show_default": True})
@MODEL
@CALIBRATION
@click.option("--out", required=True, type=FILE, help="For `hemofed-predict`.")
@SIZE
@SLICES
@click.option("--force", is_flag=True, help="Write it also when packing cost more than .005 of AUC, or nobody knows.")
@THREADS
@CONFIG
def pack_command(
    model_file: Path,
    calibration: Path | None,
    out: Path,
    size_px: int | None,
    slices_max: int | None,
    force: bool,
    threads: int,
    config: Path,
) -> None:
    """Pack a model for hosts without torch.

    int8 arithmetic takes its ranges from this site's training patients. AUC and log loss before and after come from its
    validation patients. The bundle is signed with the trainer's packing key, whose public half is printed.
    """
    settings = load_settings(config)
    model = load(model_file, size_px, slices_max, calibration)
    compute = choose("cpu", threads or settings.training.threads, model.size_px)
    loader, split = labelled_split(settings, model.size_px, model.slices_max, 0, compute.device, click.echo)
    bundle, quality = pack(model, split, loader, compute, threads or settings.training.threads)
    if not force:
        quality.refuse_a_loss()
    key = packing_key(settings.folders.trainer)
    write_bundle(out, bundle, key)
    if quality.worst is not None:
        click.echo(f"largest change of AUC: {quality.worst[1]:+.4f}, {quality.worst[0]}")
    click.echo(f"Written: {out}, measured on {quality.patients} patients, signed by")
    click.echo(key.public_key().public_bytes_raw().hex())
