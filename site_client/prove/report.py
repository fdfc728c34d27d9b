"""The findings as text, and as one self-contained HTML page to print, sign and file."""

import platform
from datetime import datetime
from html import escape
from importlib.metadata import version
from typing import Final

from site_client.prove.finding import ProofFinding, ProofOutcome

SOMETHING_BROKEN: Final = 2
SOMETHING_NOT_SHOWN: Final = 3
_MARKS = {ProofOutcome.SHOWN: "SHOWN    ", ProofOutcome.BROKEN: "BROKEN   ", ProofOutcome.NOT_SHOWN: "not shown"}
_STYLE = """
:root{color-scheme:light}
body{font:10.5pt/1.4 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:46rem;margin:2rem auto;padding:0 1rem}
h1{font-size:16pt;margin:0 0 .2rem}h2{font-size:11pt;margin:1rem 0 .2rem;display:flex;gap:.6rem;align-items:baseline}
p{margin:.2rem 0}ul{margin:.2rem 0 0;padding:0;list-style:none}
li{font:9pt/1.45 ui-monospace,monospace;overflow-wrap:anywhere}
.v{flex:none;width:5.6rem;text-align:center;font-size:9pt;border-radius:.2rem;padding:.05rem 0;border:1px solid}
.shown{color:#14532d;border-color:#14532d}.broken{color:#fff;background:#991b1b;border-color:#991b1b}
.notshown{color:#444;border-color:#888}
footer{margin-top:1.5rem;border-top:1px solid #999;padding-top:.5rem;font-size:9pt}
.sign{display:grid;grid-template-columns:2fr 1fr;gap:2rem;margin-top:2.2rem}
.sign div{border-top:1px solid #333;padding-top:.2rem}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}}
"""


def render_text(findings: list[ProofFinding]) -> str:
    """Return each claim with its outcome and evidence, and the summary."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.outcome]}  {finding.claim}")
        lines += [f"             {line}" for line in finding.evidence]
    return "\n".join([*lines, summary(findings)])


def summary(findings: list[ProofFinding]) -> str:
    """Return the counts in one sentence."""
    count = {outcome: sum(finding.outcome is outcome for finding in findings) for outcome in ProofOutcome}
    return (
        f"{count[ProofOutcome.SHOWN]} shown, {count[ProofOutcome.BROKEN]} broken, "
        f"{count[ProofOutcome.NOT_SHOWN]} could not be shown on this machine"
    )


def exit_status(findings: list[ProofFinding]) -> int:
    """Return 0 when all was shown, 2 when something is broken, 3 when something could not be shown."""
    outcomes = {finding.outcome for finding in findings}
    if ProofOutcome.BROKEN in outcomes:
        return SOMETHING_BROKEN
    return SOMETHING_NOT_SHOWN if ProofOutcome.NOT_SHOWN in outcomes else 0


def render_html(findings: list[ProofFinding], site: str, now: datetime) -> str:
    """Return the page. All text that is not ours is escaped; the page loads nothing."""
    sections = "\n".join(_section(finding) for finding in findings)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>hemofed: proof of the wall at {escape(site)}</title><style>{_STYLE}</style></head><body>
<h1>Proof of the wall at {escape(site)}</h1>
<p>{now:%Y-%m-%d %H:%M:%S} UTC, hemofed {escape(version("hemofed"))}, Linux {escape(platform.release())}.
{escape(summary(findings))}.</p>
<p>Each line was tried on this machine when this page was made: by processes under the units' own confinement, by
checks of the running services, and by a whole round on a synthetic export full of canaries. "Refused by the kernel"
is followed by the kernel's error. A claim that could not be tried is reported as not shown.</p>
{sections}
<footer>Made by <code>hemofed-site prove --report</code>. The threat model is docs/SECURITY.md. Research use; not a
medical device.<div class="sign"><div>Reviewed by</div><div>Date</div></div></footer>
</body></html>
"""


def _section(finding: ProofFinding) -> str:
    style = finding.outcome.value.replace(" ", "")
    lines = "".join(f"<li>{escape(line)}</li>" for line in finding.evidence)
    head = f'<span class="v {style}">{finding.outcome.value}</span><span>{escape(finding.claim)}</span>'
    return f"<section><h2>{head}</h2><ul>{lines}</ul></section>"
