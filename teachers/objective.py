"""What a teacher minimises, whole or shared by several processes: the same mathematics either way."""

import torch
from torch import Tensor, nn

from teachers import points
from teachers.semantic import SemanticPointRend

OVERSAMPLE, IMPORTANCE = 3, 0.75


class Objective(nn.Module):
    """Both losses of `SemanticPointRend.losses`, for the slots `rank::devices` of a batch.

    The points are those that one process would draw for the whole batch.

    Args:
        network: The network.
        num_points: Points of each image.
        batch: Images of the whole batch.
        rank: Of this process.
        devices: Processes.
    """

    def __init__(
        self, network: SemanticPointRend, *, num_points: int, batch: int, rank: int = 0, devices: int = 1
    ) -> None:
        super().__init__()
        self.network = network
        self.num_points = num_points
        self.batch = batch
        self.slots = slice(rank, None, devices)

    def forward(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mean losses and what they are means of.

        Args:
            images: (N, 3, H, W), those of the slots of this process.
            labels: (N, H, W) integer classes; 255 is ignored.
            seed: Draws the points.

        Returns:
            Mean cross-entropies (2,) float32, of the coarse logits and at the points, and the counts (2,) int64 of
            pixels and points that are not ignored.
        """
        features = self.network.features(images)
        coarse = self.network.coarse(features)
        where = self._points(coarse.detach(), seed)
        losses = self.network.losses_at(coarse, features["p2"], labels, where)
        at_points = points.point_sample(labels.unsqueeze(1).to(torch.float32), where, mode="nearest")
        counts = [(labels != points.IGNORE).sum(), (at_points != points.IGNORE).sum()]
        return torch.stack([losses["loss_sem_seg"], losses["loss_sem_seg_point"]]), torch.stack(counts)

    @torch.no_grad()
    def _points(self, coarse: Tensor, seed: int) -> Tensor:
        everyone = coarse
        if len(coarse) < self.batch:
            everyone = coarse.new_zeros(self.batch, *coarse.shape[1:])
            everyone[self.slots] = coarse
        return points.uncertain_points(
            everyone, points.uncertainty, self.num_points, oversample=OVERSAMPLE, importance=IMPORTANCE,
            generator=torch.Generator().manual_seed(seed),
        )[self.slots]  # fmt: skip
