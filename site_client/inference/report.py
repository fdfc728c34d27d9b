"""An evaluation as one page of HTML: nothing fetched, readable in the dark and on paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Final

from site_client.inference.drawing import COLORS, Axis, PlotLine, Points, chart, legend, picture
from site_client.inference.evaluation import POSITIVES_MIN, Evaluation, Level, Row
from site_client.inference.intervals import DRAWS, PATIENTS_MIN, PREVALENCES, Estimate
from site_client.inference.measures import Measure

SYNTHETIC: Final = "Research. Synthetic patients: nothing here is clinical evidence."
REAL: Final = "Research. Not a medical device; not for diagnosis or treatment."
_COLUMNS: Final = {
    Measure.AUC: "AUC",
    Measure.AUC_HEIGHT: "AUC at equal height",
    Measure.AP: "AP",
    Measure.SENSITIVITY_90: "sens. at spec. .90",
    Measure.SENSITIVITY_95: "sens. at spec. .95",
    Measure.SPECIFICITY_95: "spec. at sens. .95",
    Measure.BRIER: "Brier",
    Measure.ECE: "ECE",
    Measure.LOG_LOSS: "log loss",
}


@dataclass(frozen=True)
class Heading:
    """The head of an evaluation page.

    Attributes:
        model: Its name.
        digest: Of its weights, in hex.
        patients: One sentence about them.
        synthetic: Whether they are phantoms.
        losses: Curves (name, points by epoch) of the training; empty if it took place elsewhere.
    """

    model: str
    digest: str
    patients: str
    synthetic: bool
    losses: Sequence[tuple[str, Points]] = ()


def page(heading: Heading, evaluation: Evaluation) -> str:
    """Write an evaluation as HTML text."""
    levels = "".join(
        _level(name, level) for name, level in (("Studies", evaluation.studies), ("Slices", evaluation.slices))
    )
    light = "".join(f"--c{index}:{color};" for index, color in enumerate(COLORS))
    return _PAGE.substitute(
        light=light,
        notice=SYNTHETIC if heading.synthetic else REAL,
        model=escape(heading.model),
        digest=escape(heading.digest[:16]),
        patients=escape(heading.patients),
        losses=_losses(heading.losses),
        levels=levels,
        draws=DRAWS,
        patients_min=PATIENTS_MIN,
        positives_min=POSITIVES_MIN,
    )


def _level(name: str, level: Level) -> str:
    whole = (
        f"<p>{level.rows:,} {name.lower()}. Weighted log loss (RSNA 2019) <b>{_text(level.log_loss)}</b>; accuracy "
        f"{_text(level.accuracy)}, where answering “no hemorrhage” everywhere has {_text(level.all_negative)}.</p>"
    )
    head = "".join(f"<th scope=col>{words}</th>" for words in ("", "n⁺", *_COLUMNS.values()))
    # Reversed: `any`, the last label, has the first row.
    rows = "".join(_row(label, row) for label, row in reversed([*level.labels.items()]))
    table = f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    return f"<section><h2>{name}</h2>{whole}{table}{_predictive(level)}{_curves(name, level)}</section>"


def _row(label: str, row: Row) -> str:
    count = f"{row.positives} of {row.rows}<small>{row.patients_with} patients</small>"
    if all(estimate.value is None for estimate in row.estimates.values()):
        reason = next(iter(row.estimates.values())).reason or ""
        empty = f"<td colspan={len(_COLUMNS)} class=soft>{reason}: no figure</td>"
        return f"<tr><th scope=row>{label}</th><td>{count}</td>{empty}</tr>"
    cells = "".join(f"<td>{_cell(row.estimates[measure])}{_beside(row, measure)}</td>" for measure in _COLUMNS)
    return f"<tr><th scope=row>{label}</th><td>{count}</td>{cells}</tr>"


def _beside(row: Row, measure: Measure) -> str:
    """The ECE of a perfect model, without which an ECE means nothing in a small set."""
    if measure is not Measure.ECE or row.perfect_ece is None:
        return ""
    return f"<small>perfect model: {row.perfect_ece:.3f}</small>"


def _predictive(level: Level) -> str:
    """The table of PPV and NPV; empty when no label has any."""
    rows = ""
    for label, row in reversed([*level.labels.items()]):
        cells = "".join(f"<td>{_cell(ppv)}</td><td>{_cell(npv)}</td>" for ppv, npv in row.predictive.values())
        rows += f"<tr><th scope=row>{label}</th>{cells}</tr>" if cells else ""
    if not rows:
        return ""
    over = "".join(f"<th colspan=2 scope=colgroup>at {prevalence:.0%}</th>" for prevalence in PREVALENCES)
    under = "<th scope=col>PPV</th><th scope=col>NPV</th>" * len(PREVALENCES)
    return (
        "<p>Predictive values of the threshold with sensitivity .95, at four prevalences of the finding:</p>"
        f"<div class=scroll><table><thead><tr><th></th>{over}</tr><tr><th></th>{under}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _curves(name: str, level: Level) -> str:
    drawn = [(label, style, row) for style, (label, row) in enumerate(reversed([*level.labels.items()])) if row.roc]
    if not drawn:
        return f"<p class=soft>No curves: every label has fewer than {POSITIVES_MIN} positives.</p>"
    unit = Axis("", 0, 1)
    roc = [PlotLine(label, row.roc, style) for label, style, row in drawn]
    calibration = [PlotLine(label, row.calibration, style, dots=True) for label, style, row in drawn]
    key, height = legend([(label, style) for label, style, _ in drawn], 680, 125)
    predicted, observed = Axis("predicted probability", 0, 1), Axis("share positive", 0, 1)
    groups = [
        (0, 0, chart(f"ROC, {name.lower()}", Axis("1 − specificity", 0, 1), unit, roc, diagonal=True)),
        (350, 0, chart("Calibration", predicted, observed, calibration, diagonal=True)),
        (46, 274, key),
    ]
    description = f"ROC and calibration curves of {', '.join(label for label, _, _ in drawn)}; figures in the table"
    return picture(groups, 700, 278 + height, description)


def _losses(losses: Sequence[tuple[str, Points]]) -> str:
    if not losses:
        return "<p class=soft>No loss curve: this model was trained elsewhere.</p>"
    values = [value for _, points in losses for _, value in points]
    last = max(x for _, points in losses for x, _ in points)
    lines = [PlotLine(name, points, style, dots=True) for style, (name, points) in enumerate(losses)]
    curves = chart("Loss", Axis("epoch", 1, max(2, last)), Axis("", min(values), max(values)), lines, (700, 200))
    key, height = legend([(name, style) for style, (name, _) in enumerate(losses)], 680)
    return picture([(0, 0, curves), (46, 204, key)], 700, 208 + height, "Losses over epochs")


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"<span class=soft>{estimate.reason}</span>"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f}<small>{estimate.low:.3f}–{estimate.high:.3f}</small>"


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"unknown ({estimate.reason})"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


_PAGE: Final = Template("""\
<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evaluation of $model</title>
<style>
:root { --ink:#1b2430; --soft:#56616f; --line:#d7dde4; --paper:#ffffff; --bad:#98201b; --bad-back:#fbe4e2; $light }
@media screen and (prefers-color-scheme: dark) { :root { --ink:#e6ebf1; --soft:#a3afbd; --line:#33404f;
  --paper:#18202a; --bad:#f2a19c; --bad-back:#431c1a;
  --c0:#7db7f2; --c1:#f0a070; --c2:#8fd8a8; --c3:#d0a2ea; --c4:#e2c75a; --c5:#f58ab5; } }
body { margin:0 auto; max-width:60rem; padding:1rem; background:var(--paper); color:var(--ink);
  font:14px/1.4 system-ui, sans-serif; }
h1 { font-size:1.4rem; margin:.6rem 0 .2rem; } h2 { font-size:1.1rem; margin:1.2rem 0 .2rem; } p { margin:.3rem 0; }
.notice { padding:.4rem .7rem; border-radius:6px; background:var(--bad-back); color:var(--bad); font-weight:600; }
.soft, small { color:var(--soft); } small { display:block; white-space:nowrap; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { text-align:left; vertical-align:top; padding:.2rem .45rem; border-bottom:1px solid var(--line); }
td:nth-child(2) { white-space:nowrap; } thead th { font-size:.8rem; color:var(--soft); vertical-align:bottom; }
svg { width:100%; max-width:44rem; height:auto; display:block; margin:.4rem 0; }
@media print { body { max-width:none; padding:0; font-size:9.5px; } section { break-inside:avoid; }
  svg { max-width:30rem; } .notice { border:1px solid; } @page { margin:12mm; } }
</style></head><body>
<p class=notice>$notice</p>
<h1>Evaluation of $model</h1>
<p class=soft>Model $digest. $patients</p>
$levels
<section><h2>Training</h2>$losses</section>
<p class=soft>Small type: 95 % intervals from $draws bootstrap draws of patients, each with all slices and studies.
They cover the choice of these patients, not that of the training, and are left out below $patients_min patients with
the finding or below $patients_min without it. AUC at equal height compares slices of one height only, so that the
height alone has .5. A label with fewer than $positives_min positives has no figure. ECE: 15 bins of equally many rows;
beside it stands that of a perfect model of so few rows. The thresholds of sensitivity and specificity were chosen on
these patients, so both are slightly too high.</p>
</body></html>
""")
