"""The guided swap as a stage: aligned crops and masks in, swapped crops out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...configs import Settings
from .. import Resources
from ..colour_match import match_colour
from ..records import F32, Crops, SourceFace
from ..spread import spread
from .context import SourcePicture
from .device_start import DeviceStart
from .drawn import Drawn
from .fetch import fetch
from .fitting import Fitting, Later
from .loop import Loop
from .networks import Networks, to_tensor
from .repeatable import repeatable, tensor
from .start import SourceStart
from .views import arcface_theta

Progress = Callable[[int], None]


@dataclass
class _Shared:
    """What stages of the same settings and sources have in common: a recording of one reads it for all."""

    drawn: Drawn
    picture: SourcePicture | None = None


class SwapStage:
    """Runs Algorithm 1 on batches of a fixed size.

    Which crops share a batch, and in which row each is, ``rows.batches`` says: their frames alone decide.

    ``source`` is one face for all crops, or a list, one for each crop in its order (pairs of pictures).

    Memory that does not suffice halves the batches (``fitting``).
    """

    name: ClassVar[str] = "swap"
    resources: ClassVar[Resources] = Resources(cpus=1, gpus=1)

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        source: SourceFace | Sequence[SourceFace],
        progress: Progress | None = None,
    ) -> None:
        networks.manifest.check(settings.conditioning)
        self.networks, self.settings, self.progress = networks, settings, progress
        self.sources = [source] if isinstance(source, SourceFace) else list(source)
        self.loop = Loop(networks, settings)
        self.fitting = Fitting(settings.batch, networks.device)
        # Arithmetic that OpenCV does on a processor, torch does on a GPU: a frame's takes a processor longer
        # than its networks take the GPU.
        self.on_device = networks.device.type == "cuda"
        self._device_start: DeviceStart | None = None
        self._starts: list[SourceStart] = []
        self._guard = threading.Lock()
        own = _Shared(Drawn(settings.seed, 0))
        # With several sources nothing is recorded, and their pictures are large.
        alone = len(self.sources) == 1
        self._shared = networks.recorder.shared(self._token(), lambda: own) if alone else own

    def _token(self) -> str:
        """The same for stages that do the same with one source: what one recorded, the other may replay."""
        whole = hashlib.sha256(self.settings.model_dump_json().encode())
        (source,) = self.sources
        for array in (source.image, source.landmarks, source.embedding):
            whole.update(hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest())
        return whole.hexdigest()

    def setup(self) -> None:
        """Holds the source's picture for the terms; parses each once, where the start needs it."""
        with self._guard:
            if self._shared.picture is None:
                self._shared.picture = self._pictured(self.sources)
            if self.settings.start == "source" and not self._starts:
                self._starts = [self._start_of(source) for source in self.sources]
            if self._starts and self.on_device and self._device_start is None:
                with self.networks.beside():  # where it is used
                    self._device_start = DeviceStart(self._starts, self.networks.device)

    def _start_of(self, source: SourceFace) -> SourceStart:
        with repeatable():
            parse = self.networks.parse_crops(source.image[None])[0]
        parser = self.networks.manifest.parser
        return SourceStart(source, parse, parser, mirror=self.settings.start_mirror)

    def _pictured(self, sources: Sequence[SourceFace]) -> SourcePicture:
        image = to_tensor(np.stack([s.image for s in sources]), self.networks.device)
        return SourcePicture(image, np.stack([s.landmarks for s in sources]))

    def process(self, item: Crops, /) -> Crops:
        """Fills ``swapped``, (N, S, S, 3) float32 RGB in [0, 255]; needs ``masks``. Parses are used up."""
        return self.match(self.sample(self.prepare(item)))

    def prepare(self, item: Crops, /) -> Crops:
        """Fills ``starts`` and ``kept``, where the loop starts from the source."""
        self._check(item)
        self.setup()
        if not self._starts or item.starts is not None or not len(item):
            return item
        if self.on_device:
            made = self.fitting.over(item.frames, lambda part: self._composed(item, part))
            assert made is not None
            return replace(item, starts=made[..., :3], kept=made[..., 3])
        assert item.masks is not None
        parses = item.parses
        if parses is None:
            parses = self.fitting.over(item.frames, lambda part: self.networks.parse_crops(item.images[part]))
            assert parses is not None
        starts = self._starts if len(self._starts) > 1 else self._starts * len(item)
        keep = repeat(self.settings.start_keep, len(item))
        rows = (item.images, item.landmarks, item.masks, parses, keep)
        composed = spread(lambda start, *row: start.compose_one(*row), starts, *rows)
        pictures, kept = zip(*composed, strict=True)
        return replace(item, starts=np.stack(pictures), kept=np.stack(kept))

    def sample(self, item: Crops, /) -> Crops:
        """Fills ``swapped`` with what the networks make; on a GPU ``match`` is part of it."""
        self._check(item)
        swapped = self.fitting.over(item.frames, lambda part: self._swap(item, part), self.progress)
        if swapped is None:
            swapped = np.zeros(item.images.shape, np.float32)
        return replace(item, swapped=swapped, parses=None, starts=None, kept=None)

    def match(self, item: Crops, /) -> Crops:
        """Gives ``swapped`` the colours of the target."""
        if self.on_device:
            return item
        assert item.swapped is not None and item.masks is not None
        return replace(
            item, swapped=match_colour(item.swapped, item.images, item.masks, self.settings.colour_match)
        )

    def _check(self, item: Crops) -> None:
        if item.masks is None:
            raise ValueError("crops need masks before they are swapped")
        if len(self.sources) not in (1, len(item)):
            raise ValueError(f"{len(self.sources)} sources for {len(item)} crops")

    @torch.no_grad()
    def _composed(self, item: Crops, rows: NDArray[np.intp]) -> F32:
        """What ``start`` makes of crops, (B, S, S, 4): the pictures, and what was kept."""
        net, start = self.networks, self._device_start
        assert item.masks is not None and start is not None
        of = rows if len(self.sources) > 1 else np.zeros(len(rows), int)
        with net.beside():
            target = tensor(item.images[rows], net.device).permute(0, 3, 1, 2).float()
            pictures, kept = start.compose(
                target,
                tensor(item.landmarks[rows], net.device),
                tensor(item.masks[rows], net.device),
                net.parse(target / 255),
                tensor(of, net.device),
                tensor(start.shares(item.landmarks[rows], of), net.device),
                self.settings.start_keep,
            )
            return cast(F32, torch.cat([pictures, kept[:, None]], 1).permute(0, 2, 3, 1).cpu().numpy())

    def _swap(self, item: Crops, rows: np.ndarray) -> F32 | Later:
        """One batch (B, S, S, 3) in [0, 255], from a GPU what gives it; ``rows`` index the crops."""
        net = self.networks
        shared = self._shared
        assert item.masks is not None and shared.picture is not None
        # Which source each row gets.
        of = rows if len(self.sources) > 1 else np.zeros(len(rows), int)
        landmarks, size = item.landmarks[rows], item.images.shape[1]
        theta = arcface_theta(landmarks, net.identity_template(), size, net.manifest.identity.size)
        arrays = {
            "images": item.images[rows],
            "masks": item.masks[rows],
            "landmarks": landmarks,
            "sources": np.stack([self.sources[i].embedding for i in of]),
        }
        if item.starts is not None and item.kept is not None:
            arrays |= {"starts": item.starts[rows], "kept": item.kept[rows]}
        if item.parses is not None and self.loop.parse_size is None:
            arrays["parses"] = item.parses[rows]
        inputs = {name: tensor(array, net.device) for name, array in arrays.items()}
        inputs["theta"] = tensor(theta.numpy(), net.device)
        single = len(self.sources) == 1
        picture = shared.picture if single else self._pictured([self.sources[i] for i in of])
        made_of = partial(self.loop.sampled, track=item.track, picture=picture, matched=self.on_device)
        work = partial(made_of, verdicts=self.on_device)
        # Whether a user's own term waits for the GPU, nobody knows.
        if self.on_device and single and all(scheduled.file is None for scheduled in self.loop.terms):
            # A recording reads what is random wherever it lies, whatever track that is of.
            turn = partial(shared.drawn.turn_to, item.track)
            made = net.recorder.run(shared.drawn, partial(work, drawn=shared.drawn), inputs, turn)
        else:
            made = work(inputs)
        arrived = fetch(made)

        def result() -> F32:
            swapped, *verdicts = arrived()
            if all(bool(verdict) for verdict in verdicts):
                return swapped
            with repeatable():  # it says which term it was
                again = made_of(inputs, verdicts=False)
            return cast(F32, again[0].cpu().numpy())

        return result if self.on_device else result()
