"""What a guiding network sees of a crop: the ArcFace view, moved, mirrored or framed otherwise.

Convention
    A θ is (B, 2, 3) and maps normalised *view* coordinates to normalised *crop* coordinates, as
    ``affine_grid`` takes it. Both normalisations are those of ``align_corners=False``: −1 and 1 are the
    outer edges of the border pixels, whatever the resolution, so one θ serves full and half-size decodes.
    A change of the view is another 2×3 matrix, applied first: θ ∘ change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from ..align import estimate_similarity
from ..records import F32
from .constants import constant
from .repeatable import sample_bilinear, tensor

if TYPE_CHECKING:
    from .context import Context


def arcface_theta(landmarks: F32, template: F32, crop_size: int, size: int) -> Tensor:
    """θ (B, 2, 3) float32 of the ArcFace view of faces with these landmarks.

    ``landmarks`` (B, 5, 2) in crop pixels; ``template`` (5, 2) at ``size``.
    """

    def normalised(n: int) -> Any:  # pixel centre coordinates → [−1, 1]
        return np.array([[2 / n, 0, 1 / n - 1], [0, 2 / n, 1 / n - 1], [0, 0, 1]])

    thetas = []
    for points in landmarks:
        to_crop = np.vstack([estimate_similarity(template, points), [0, 0, 1]])
        thetas.append((normalised(crop_size) @ to_crop @ np.linalg.inv(normalised(size)))[:2])
    return tensor(np.stack(thetas).astype(np.float32), torch.device("cpu"))


def arcface_view(image: Tensor, theta: Tensor, size: int) -> Tensor:
    """The view θ of (B, 3, H, W), differentiable: (B, 3, size, size). Outside, the border repeats."""
    grid = F.affine_grid(theta, [len(image), image.shape[1], size, size], align_corners=False)
    if image.is_cuda:
        return sample_bilinear(image, grid)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _after(theta: Tensor, change: Tensor) -> Tensor:
    """θ ∘ change: ``change`` (3, 3) acts on view coordinates first."""
    bottom = constant([0.0, 0.0, 1.0], theta).expand(len(theta), 1, 3)
    return (torch.cat([theta, bottom], 1) @ change)[:, :2]


def jitter(amount: float, random: torch.Generator, *, mirrored: bool) -> Tensor:
    """A change of a view, (3, 3) float64 on the CPU: slightly turned (up to 0.1 rad × ``amount``), scaled
    (8 %), shifted (3 % of the side), mirrored."""
    draw = torch.rand(5, generator=random) * 2 - 1
    angle, scale = float(draw[0]) * 0.10 * amount, 1 + float(draw[1]) * 0.08 * amount
    flip = -1.0 if mirrored else 1.0
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = (draw[2:4] * 0.06 * amount).tolist()
    change = [[cos * flip, -sin, shift[0]], [sin * flip, cos, shift[1]], [0, 0, 1]]
    return torch.tensor(change, dtype=torch.float64)


def jittered(
    context: Context, theta: Tensor, amount: float, purpose: str, step: int, *, mirrored: bool
) -> Tensor:
    """θ under the ``jitter`` of (seed, track, purpose, step), the same for all frames of a track."""
    change = context.random(
        purpose, lambda random: jitter(amount, random, mirrored=mirrored), step, (amount, mirrored)
    )
    return _after(theta, change.to(theta))


def zoomed(theta: Tensor, zoom: float, template: F32, size: int) -> Tensor:
    """θ framed ``zoom`` times closer about the middle of the face (the mean of ``template`` at ``size``).

    Above 1 the view shows the inner features, below 1 more of the head.
    """
    cx, cy = ((2 * template.mean(0) + 1) / size - 1).tolist()
    keep = 1 / zoom
    change = [[keep, 0.0, cx * (1 - keep)], [0.0, keep, cy * (1 - keep)], [0.0, 0.0, 1.0]]
    return _after(theta, constant(change, theta))
