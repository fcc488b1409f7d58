"""Random tensors of a track, at addresses that stay.

What was recorded on a GPU (``recorded``) reads memory, not names: with another track's numbers in the same
place, one recording serves all tracks of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .noise import generator

Make = Callable[[torch.Generator], Tensor]


class Drawn:
    """What was drawn so far, of one track at a time. Not for several threads at once."""

    def __init__(self, seed: int, track: int) -> None:
        self.seed, self.track = seed, track
        self._made: dict[tuple[str, int, Hashable], tuple[Tensor, Make]] = {}

    def turn_to(self, track: int) -> None:
        """Draw everything anew for another track, in place."""
        if track == self.track:
            return
        self.track = track
        for (purpose, step, _), (value, make) in self._made.items():
            value.copy_(make(generator(self.seed, track, purpose, step)))

    def of(self, purpose: str, step: int, what: Hashable, make: Make, device: torch.device) -> Tensor:
        """``make``'s tensor by the generator of (seed, track, purpose, step); ``what`` tells apart what is
        made of the same numbers. Not to be changed in place."""
        known = self._made.get((purpose, step, what))
        if known is None:
            value = make(generator(self.seed, self.track, purpose, step)).to(device)
            known = self._made[purpose, step, what] = value, make
        return known[0]
