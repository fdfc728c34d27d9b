"""The match report: doubts about labels and images, as questions with figures for a person before the first training.

A label table may be sound and still be the wrong one. No question stops training; each is asked until it is answered
by the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from federation.labels import ANY, LABELS

from site_client.ingest.catalog.dataset import LabelledStack, LabelState

_STUDIES_MIN: Final = 50  # below, a share says little
_EXPECTED_MIN: Final = 5  # positive studies that the literature would lead to expect before their lack is a question


@dataclass(frozen=True)
class PublishedShare:
    """The lowest and the highest share of head CTs with a label, among published cohorts of hospitals."""

    low: float
    high: float


# Chilamkurthy et al., Lancet 2018, 392:2388-2396 (preprint arXiv:1803.05854). High: CQ500, 491 head CTs of which 277
# were chosen by words of their reports; `python tests/benchmarks/published_shares.py reads.csv` counts it again. Low:
# Qure25k, 21 095 head CTs drawn at random; it is not public, and its counts by label are those of the paper's table 1
# as we knew them. `any` begins at 84 of 1372 head CTs of one hospital (Abrigo et al., Hong Kong Med J 2023, 29:112).
# The RSNA set of 2019 is no cohort: its studies were chosen by label.
PUBLISHED_SHARES: Final = {
    "epidural": PublishedShare(290 / 21_095, 13 / 491),
    "intraparenchymal": PublishedShare(2_013 / 21_095, 134 / 491),
    "intraventricular": PublishedShare(436 / 21_095, 28 / 491),
    "subarachnoid": PublishedShare(611 / 21_095, 60 / 491),
    "subdural": PublishedShare(554 / 21_095, 53 / 491),
    "any": PublishedShare(84 / 1_372, 205 / 491),
}


@dataclass(frozen=True)
class MatchQuestion:
    """A doubt about labels. `code`: one of a closed list. `text`: the question in one sentence; figures only."""

    code: str
    count: int
    text: str


@dataclass(frozen=True)
class MatchCounts:
    """Counts over label files and images that questions are asked about."""

    labels: int
    labels_without_images: int
    labels_of_two_studies: int
    contradicted: int
    not_understood: int


def ask(stacks: Sequence[LabelledStack], counts: MatchCounts) -> tuple[MatchQuestion, ...]:
    """Asks all questions that labels and images give rise to.

    Args:
        stacks: The chosen stack of each study, with its labels.
        counts: Of the label files.
    """
    states = [stack.label_state for stack in stacks]
    unlabelled, in_conflict = states.count(LabelState.UNLABELLED), states.count(LabelState.CONFLICT)
    alone = sum(stack.study_cells[ANY] == 1 and set(stack.study_cells[:ANY]) == {0} for stack in stacks)
    counted = (
        (
            "D_LABELS_WITHOUT_IMAGES",
            counts.labels_without_images,
            f"of {counts.labels} labels have no image in the export: are the images elsewhere, or were UIDs replaced?",
        ),
        (
            "D_IMAGES_WITHOUT_LABELS",
            unlabelled,
            f"of {len(stacks)} usable studies have no label: is a table missing? An empty cell is not a negative one.",
        ),
        (
            "D_LABELS_OF_TWO_STUDIES",
            counts.labels_of_two_studies,
            "accession numbers with a label stand for two studies, so they label neither: can a table name the study?",
        ),
        (
            "D_READERS_DIFFER",
            counts.contradicted,
            "studies or slices have rows that contradict each other: does [labels] in site.toml hold your rule?",
        ),
        ("D_CONFLICT", in_conflict, "studies are left out, because their labels contradict each other: who decides?"),
        (
            "D_NOT_UNDERSTOOD",
            counts.not_understood,
            "rows or cells of the label files were not understood: hemofed-site catalog labels names file and line.",
        ),
        (
            "D_ANY_ALONE",
            alone,
            "studies have a bleed and none of the five subtypes: should the subtypes be empty, which means unknown?",
        ),
    )
    questions = [MatchQuestion(code, count, f"{count} {text}") for code, count, text in counted if count]
    return (*questions, *_of_shares([stack.study_cells for stack in stacks]))


def shares(cells: Sequence[bytes]) -> dict[str, tuple[int, int]]:
    """Counts for each label the studies that have it, and the studies of which it is known."""
    columns = {label: [row[place] for row in cells] for place, label in enumerate(LABELS)}
    return {label: (column.count(1), column.count(0) + column.count(1)) for label, column in columns.items()}


def _of_shares(cells: Sequence[bytes]) -> list[MatchQuestion]:
    questions = []
    for label, (positive, known) in shares(cells).items():
        published = PUBLISHED_SHARES[label]
        share = positive / max(1, known)
        # Twice and half: a hospital is no average, but a swapped column is far off.
        too_many = share > min(2 * published.high, 0.95)
        too_few = share < published.low / 2 and known * published.low >= _EXPECTED_MIN
        if known >= _STUDIES_MIN and (too_many or too_few):
            questions.append(
                MatchQuestion(
                    "D_SHARE",
                    positive,
                    f"You say {100 * share:.0f} % {label} ({positive} of {known} studies); published are "
                    f"{100 * published.low:.1f} to {100 * published.high:.1f} %. Is the column right, and were the "
                    "studies chosen by their findings?",
                )
            )
    return questions
