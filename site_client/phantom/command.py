"""`hemofed-site phantom`: writes synthetic patients to a folder."""

import math
from pathlib import Path

import click

from site_client.phantom.dataset import Format, Order, make_set
from site_client.phantom.faults import NO_FAULTS, Rates
from site_client.phantom.lesions import Prevalence
from site_client.phantom.study import Wishes

PROFILE_NAMES = click.Choice(["T", "S", "N", "C", "R", "U"])


@click.command()
@click.option("--profile", type=PROFILE_NAMES, required=True, help="The site: trauma, stroke, neurosurgery, ...")
@click.option("--studies", type=click.IntRange(1), required=True, help="How many studies.")
@click.option("--seed", type=click.IntRange(0), required=True, help="Equal seeds give equal bytes.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A new or empty folder.")
@click.option(
    "--prevalence",
    type=click.Choice(["profile", "rsna", "natural", "balanced"]),
    default="profile",
    show_default=True,
    help="The profile's own mix, RSNA-like, emergency-like, or half positive with every subtype common.",
)
@click.option("--render-as", type=PROFILE_NAMES, default=None, help="These patients on that profile's scanner.")
@click.option("--size-px", type=click.IntRange(64, 512), default=256, show_default=True, help="Rows and columns.")
@click.option("--thickness-mm", type=click.FloatRange(1, 10), default=None, help="Instead of the scanner's own.")
@click.option(
    "--difficulty",
    type=click.FloatRange(0.2, 3.0),
    default=1.0,
    show_default=True,
    help="Below 1: larger bleeds; above 1: smaller and fainter ones.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0.01),
    default=math.inf,
    show_default=True,
    help="Label skew: the site's mix is drawn from a Dirichlet distribution around what was asked; small is far away.",
)
@click.option("--faults", is_flag=True, help="Inject what real archives get wrong, at the rates in the manifest.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["dicom", "npz"]),
    default="dicom",
    show_default=True,
    help="npz: int16 arrays for training, a fraction of the time and size.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes; never the result.")
@click.option("--twins", is_flag=True, help="Add a lesion-free twin of each positive study.")
def phantom(
    profile: str,
    studies: int,
    seed: int,
    out: Path,
    prevalence: Prevalence,
    render_as: str | None,
    size_px: int,
    thickness_mm: float | None,
    difficulty: float,
    alpha: float,
    faults: bool,
    format_: Format,
    workers: int,
    twins: bool,
) -> None:
    """Write synthetic head CT studies with labels. A result on them is never clinical evidence."""
    wishes = Wishes(size_px, thickness_mm, prevalence, difficulty)
    rates = Rates() if faults else NO_FAULTS
    make_set(Order(profile, studies, seed, wishes, render_as, twins, alpha, rates, format_), out, workers)
    click.echo(f"{studies} synthetic studies of profile {profile}, seed {seed}, are written.")
