"""The 3D architecture: one convolutional network over the whole head, one output for the study.

The founding paper (arXiv 2005.08644) names 3D convolutions as further work. Three windows of every slice are stacked to
a volume. The slices keep their distances, and the mean of the geometry tells the network which distances those are.
"""

from typing import Final

import torch
import torch.nn.functional as F
from federation.labels import LABELS
from torch import Tensor, nn

from site_client.model.network import GEOMETRY, PRIOR_STUDY, Network, Output, prior_logits

WINDOWS: Final = (1, 3, 4)  # of the five channels: brain, subdural, bone. A volume has its neighbour slices anyway
SLICES_MIN: Final = 16  # the backbone halves the stack four times
_AIR: Final = -1.0


class VolumeNet(Network):
    """A network whose `Output` has no slice logits, and one embedding for each study.

    Normalization runs over the whole volume. So each study goes through the backbone alone and without padding, and its
    output does not depend on the other studies of a batch. A stack of fewer than 16 slices is filled up with air.

    Input: x f32[B,T,5,H,W] in [-1,1], mask bool[B,T], geom f32[B,T,4]. Output: slice logits f32[B,0,6], study logits
    f32[B,6], embedding f32[B,1,F].
    """

    has_slice_outputs = False

    def __init__(self, backbone: nn.Module, features: int, *, dropout: float) -> None:
        """Take a backbone f32[N,3,T,H,W] -> f32[N,features] and add the study head."""
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.study_head = nn.Linear(features + GEOMETRY, len(LABELS))
        with torch.no_grad():
            nn.init.normal_(self.study_head.weight, std=0.01)
            self.study_head.bias.copy_(prior_logits(PRIOR_STUDY))

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Map x f32[B,T,5,H,W], mask bool[B,T], geom f32[B,T,4] to an `Output`; see the class."""
        features = torch.cat([self._embed(study[real]) for study, real in zip(x, mask, strict=True)])  # [B,F]
        geometry = torch.stack([study[real].mean(dim=0) for study, real in zip(geom, mask, strict=True)])
        study_logits = self.study_head(torch.cat([self.dropout(features), geometry], dim=1))
        return Output(study_logits.new_zeros(len(x), 0, len(LABELS)), study_logits, features.unsqueeze(1))

    def _embed(self, slices: Tensor) -> Tensor:
        """[T,C,H,W] -> f32[1,F]."""
        volume = slices[:, WINDOWS].transpose(0, 1)
        missing = max(0, SLICES_MIN - len(slices))
        features: Tensor = self.backbone(F.pad(volume, (0, 0, 0, 0, 0, missing), value=_AIR).unsqueeze(0))
        return features.float()
