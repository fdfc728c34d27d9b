"""Where the six labels stand in every array, and what each weighs."""

from typing import Final

from site_client.ingest.records import LABELS, MISSING

__all__ = ["ANY", "LABELS", "LABEL_WEIGHTS", "MISSING"]

ANY: Final = LABELS.index("any")

# In the training loss and in the RSNA 2019 challenge's weighted log loss.
LABEL_WEIGHTS: Final = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)
