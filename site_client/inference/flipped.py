"""The mean of a network's answers for an image and its mirror image: test-time augmentation by a flip."""

from torch import Tensor

from site_client.model.network import Network, Output


class FlippedMean(Network):
    """A network whose log-odds are the mean over the image and its mirror image. It takes twice the time."""

    def __init__(self, net: Network) -> None:
        """Wrap `net`, whose weights stay its own."""
        super().__init__()
        self.net = net
        self.has_slice_outputs = net.has_slice_outputs

    def forward(self, x: Tensor, mask: Tensor, geom: Tensor) -> Output:
        """Map x f32[B,T,5,H,W], mask bool[B,T], geom f32[B,T,4] to an `Output`; see `Network`."""
        straight, mirrored = self.net(x, mask, geom), self.net(x.flip(-1), mask, geom)
        return Output(
            (straight.slice_logits + mirrored.slice_logits) / 2,
            (straight.study_logits + mirrored.study_logits) / 2,
            straight.embedding,
        )
