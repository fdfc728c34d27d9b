"""The 3D architecture: one convolutional network over the whole head, and one answer for the study.

The founding paper names 3D convolutions as further work. Three windows of every slice are stacked to a volume; slices
keep the distances they were taken at, and the mean of the geometry says what those were.
"""

from typing import Final

import torch
import torch.nn.functional as F
from federation.labels import LABELS
from torch import Tensor, nn

from site_client.model.network import GEOMETRY, PRIOR_STUDY, Network, Output

WINDOWS: Final = (1, 3, 4)  # of the five channels: brain, subdural and bone; neighbours are neighbours here anyway
SLICES_MIN: Final = 16  # the backbone halves the stack four times
_AIR: Final = -1.0


class VolumeNet(Network):
    """backbone: [N,3,T,H,W] -> [N,features]. Verdict has no slice logits, and one embedding a study.

    Normalization runs over the whole volume, so each study goes through alone and without padding: its answer does not
    depend on the company it is in. A study of less than 16 slices is filled up with air above the head.
    """

    has_slice_outputs = False

    def __init__(self, backbone: nn.Module, features: int, *, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.study_head = nn.Linear(features + GEOMETRY, len(LABELS))
        with torch.no_grad():
            nn.init.normal_(self.study_head.weight, std=0.01)
            self.study_head.bias.copy_(torch.logit(torch.tensor(PRIOR_STUDY)))

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        features = torch.cat([self._embed(study[shown]) for study, shown in zip(x, mask, strict=True)])  # [B,F]
        geometry = torch.stack([study[shown].mean(dim=0) for study, shown in zip(geom, mask, strict=True)])
        study_logits = self.study_head(torch.cat([self.dropout(features), geometry], dim=1))
        return Output(study_logits.new_zeros(len(x), 0, len(LABELS)), study_logits, features.unsqueeze(1))

    def _embed(self, slices: Tensor) -> Tensor:
        """[T,C,H,W] -> f32[1,F]."""
        volume = slices[:, WINDOWS].transpose(0, 1)
        missing = max(0, SLICES_MIN - len(slices))
        features: Tensor = self.backbone(F.pad(volume, (0, 0, 0, 0, 0, missing), value=_AIR).unsqueeze(0))
        return features.float()
