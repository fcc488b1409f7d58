"""A guidance term of one's own: pulls the swapped face's mean skin colour towards a given one.

    ldvid swap clip.mp4 --source face.png --guidance my_term.py:ColourTerm --set colour_match=0 \\
        --set 'guidance.ColourTerm.colour=[190,140,110]' --set guidance.ColourTerm.scale=2

``colour_match=0``, because it would give the face the target's colours back afterwards. docs/guidance.md
says what a term may do.
"""

import torch
from torch.nn.functional import interpolate

PART = "skin"  # as the pack's parser calls it


class ColourTerm:
    """(distance of the mean skin colour inside the mask)², × ``strength``.

    ``colour`` is RGB in 0–255; None is the target's own skin.
    """

    def __init__(self, colour=None, strength=10.0):
        self.colour, self.strength = colour, strength

    def loss(self, x_hat, context):
        size = x_hat.shape[-2:]  # the crop's, or half of it: what lies beside it is brought to that size
        skin = context.target_parse[:, context.networks.manifest.parser.indices(PART)].sum(1, keepdim=True)
        weight = interpolate(skin, size) * interpolate(context.mask, size)
        weight = weight / weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        mean = (x_hat * weight).sum((2, 3))  # (B, 3)
        if self.colour is None:
            target = interpolate(context.target, size, mode="bilinear", antialias=True)
            wanted = (target * weight).sum((2, 3))
        else:
            wanted = torch.as_tensor(self.colour, device=mean.device, dtype=mean.dtype) / 255
        return self.strength * ((mean - wanted) ** 2).sum(1)  # (B,)
