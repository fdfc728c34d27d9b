"""The six labels of the RSNA 2019 challenge: names, order, weights, and the bins in which scores are counted.

Every array with a label axis, at every site and at the aggregator, has the labels in this order. So the order is an
agreement between machines: a histogram of one label must never be added to a histogram of another.
"""

from typing import Final

SUBTYPES: Final = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS: Final = (*SUBTYPES, "any")
ANY: Final = LABELS.index("any")

# Weights in the training loss and in the challenge's weighted log loss:
# RSNA Intracranial Hemorrhage Detection (2019), Evaluation.
LABEL_WEIGHTS: Final = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)

MISSING: Final = -1  # in an array of labels, beside 0 (negative) and 1 (positive)

SIDES: Final = ("negative", "positive")  # the truth axis of a score histogram
BINS: Final = 64  # of a score histogram, equal in width
LOGIT_EDGE: Final = 8.0  # bins cover [-8, 8); the outermost two also hold all logits beyond
