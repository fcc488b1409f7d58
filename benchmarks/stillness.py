"""Where flicker comes from, and what stills it: stretches of clips, swapped and measured in memory.

    python benchmarks/stillness.py causes examples/clip.mp4 --source examples/face-2.png
    python benchmarks/stillness.py remedies CLIP --source FACE --start 2 --end 2.8 --set steps=8
    python benchmarks/stillness.py judged CLIP --source FACE --preset quality

``causes`` replaces one part of the swap after the other by something that can't flicker (or the swap by
something that shows one part alone); ``remedies`` compares what may be done against it; ``judged`` gives
what ``metrics.stillness`` says of the swap as it is made, with the average over time and without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ldvid.configs.settings import Settings, load_settings
from ldvid.metrics.judges import open_judges
from ldvid.metrics.stillness import Stillness, measure
from ldvid.pipeline.analyse import analyse
from ldvid.pipeline.look import look
from ldvid.pipeline.progress import Silent, Stopwatch
from ldvid.stages.align import AlignStage
from ldvid.stages.colour_match import match_colour
from ldvid.stages.decode import DecodeStage, probe
from ldvid.stages.detect import open_detector
from ldvid.stages.flow import follow, optical_flow
from ldvid.stages.mask import MaskStage
from ldvid.stages.paste import PasteStage
from ldvid.stages.records import F32, U8, Crops, Frame, Segment, SourceFace, Track
from ldvid.stages.rows import between
from ldvid.stages.source import load_source
from ldvid.stages.steady import steady
from ldvid.stages.swap import loop, sampler
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.stages.swap.stage import SwapStage
from rich.console import Console

SIGMAS = (0.7, 1.2, 2.0, 3.0)


@dataclass
class Stretch:
    """A stretch of a clip with one track, cut and masked: what all variants begin with."""

    settings: Settings
    pack: Pack
    networks: Networks
    source: SourceFace
    frames: list[U8]
    track: Track
    crops: Crops

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> Stretch:
        settings = load_settings(arguments.preset, assignments=arguments.set)
        pack = open_pack(settings.pack)
        networks = Networks.load(pack, "cpu")
        info = probe(arguments.clip, start=arguments.start, end=arguments.end)
        looks = look(info, settings, pack, 0, info.frames, Stopwatch())
        plan = analyse(info, settings, looks, lambda c: networks.recognise(c[None])[0], Silent(), Stopwatch())
        track = max((t for t in plan.tracks if t.id in plan.sources), key=lambda t: len(t.frames))
        frames = list(DecodeStage(info, "pyav").frames(Segment(0, 0, info.frames)))
        manifest = pack.manifest
        crops = AlignStage(track, manifest.template_points(), manifest.crop_size).process(frames)
        crops = MaskStage(networks, settings).process(crops)
        source = load_source(
            arguments.source, pack, open_detector(pack, settings.detector_threshold), networks.embed, None
        )[0]
        return cls(settings, pack, networks, source, [f.rgb for f in frames], track, crops)

    def swap(self, **changes: Any) -> Crops:
        """By the stage as it is, with other settings."""
        settings = self.settings.model_copy(update=changes)
        return SwapStage(self.networks, settings, self.source).process(self.crops)

    def pasted(self, crops: Crops) -> list[U8]:
        """The frames of the track."""
        first, last = int(crops.frames[0]), int(crops.frames[-1])
        frames = [Frame(i, self.frames[i]) for i in range(first, last + 1)]
        pictures = PasteStage().process((frames, [crops]))[0]
        return [p.astype(np.uint8) for p in pictures]

    def measured(self, crops: Crops, *, judged: bool = False) -> Stillness:
        """The figures of crops pasted."""
        first, last = int(crops.frames[0]), int(crops.frames[-1])
        points = self.track.landmarks
        if not judged:
            return measure(self.frames[first : last + 1], self.pasted(crops), points)
        judges = open_judges(self.pack)
        embedding = judges.identity.embed(self.source.image, self.source.landmarks)
        return measure(self.frames[first : last + 1], self.pasted(crops), points, judges, embedding)


def causes(s: Stretch) -> dict[str, Callable[[], Crops]]:
    """One part of the swap at a time."""
    own = s.crops.images.astype(np.float32)
    n, middle = len(s.crops), len(s.crops) // 2
    assert s.crops.masks is not None
    still = np.repeat(s.crops.masks.mean(0)[None], n, 0)
    full = s.swap()
    assert full.swapped is not None

    def held(crops: Crops) -> F32:
        assert crops.swapped is not None
        return np.repeat(crops.swapped[middle][None], n, 0)

    def auto() -> F32:
        with torch.no_grad():
            made = [
                s.networks.decode(s.networks.encode(to_tensor(c[None], "cpu")))[0] for c in s.crops.images
            ]
        return np.stack([m.permute(1, 2, 0).numpy() * 255 for m in made])

    return {
        "the swap as it is, frame by frame": lambda: full,
        "landmarks, there and back: the original's crops pasted": lambda: replace(s.crops, swapped=own),
        "+ mask's edge: the same, 30 levels lighter": lambda: replace(s.crops, swapped=own + 30),
        "  with one mask for all frames": lambda: replace(s.crops, swapped=own + 30, masks=still),
        "landmarks alone: one swapped crop for all frames": lambda: replace(
            s.crops, swapped=held(full), masks=still
        ),
        "autoencoder: there and back": lambda: replace(s.crops, swapped=auto()),
        "start composition, hardly diffused": lambda: s.swap(start_level=0.02, steps=1, guidance=()),
        "diffusion without guidance": lambda: s.swap(guidance=()),
        "the swap without colour match": lambda: s.swap(colour_match=0.0),
        "the swap with one mask for pasting": lambda: replace(full, masks=still),
    }


def remedies(s: Stretch) -> dict[str, Callable[[], Crops]]:
    """What may be done against it. ``steady`` is what ldvid does."""
    full = s.swap()
    last = int(full.frames[-1]) + 1
    shared = cache(lambda: shared_guidance(s))
    chosen = {f"steady = {sigma}": lambda sigma=sigma: steady(full, sigma, 0, last) for sigma in SIGMAS}
    return {
        "frame by frame": lambda: full,
        **chosen,
        "average in place, without flow (σ 1.2)": lambda: replace(full, swapped=in_place(full, 1.2)),
        "other noise in each frame": lambda: fresh_noise(s),
        "warm start from the frame before (half)": lambda: warm_start(s, 0.5),
        "latents averaged (σ 1.2)": lambda: latent_average(s, 1.2),
        "guidance shared by a batch's frames": lambda: shared(),
        "guidance shared, then steady = 1.2": lambda: steady(shared(), 1.2, 0, last),
    }


def gaussian(values: F32, sigma: float) -> F32:
    """(N, …) along the first axis, ends renormalised."""
    at = np.arange(len(values))
    w = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
    return np.einsum("ij,j...->i...", w / w.sum(1, keepdims=True), values).astype(np.float32)


def in_place(crops: Crops, sigma: float) -> F32:
    """The change averaged in the crop, pixel by pixel."""
    own = crops.images.astype(np.float32)
    assert crops.swapped is not None
    return np.clip(own + gaussian(crops.swapped - own, sigma), 0, 255)


def fresh_noise(s: Stretch) -> Crops:
    """What fixing the noise in the crop is worth."""
    rows = [between(s.crops, int(f), int(f) + 1) for f in s.crops.frames]
    made = []
    for i, row in enumerate(rows):
        settings = s.settings.model_copy(update={"batch": 1, "seed": i})
        swapped = SwapStage(s.networks, settings, s.source).process(row).swapped
        assert swapped is not None
        made.append(swapped[0])
    return replace(s.crops, swapped=np.stack(made))


class _WarmStage(SwapStage):
    """Begins with a share of the frame before, brought along the flow."""

    share = 0.0
    last: tuple[U8, F32] | None = None

    def prepare(self, item: Crops, /) -> Crops:
        item = super().prepare(item)
        if self.last is None:
            return item
        assert item.starts is not None and item.kept is not None and item.masks is not None
        there = follow(self.last[1], optical_flow(item.images[0], self.last[0]))
        weight = (self.share * item.masks[0] * (1 - item.kept[0]))[..., None]
        return replace(item, starts=(item.starts * (1 - weight) + there * weight).astype(np.float32))


def warm_start(s: Stretch, share: float) -> Crops:
    """Frame after frame: what no two machines could share."""
    warm = _WarmStage(s.networks, s.settings.model_copy(update={"batch": 1}), s.source)
    warm.share = share
    made = []
    for f in s.crops.frames:
        row = between(s.crops, int(f), int(f) + 1)
        swapped = warm.process(row).swapped
        assert swapped is not None
        made.append(swapped[0])
        warm.last = (row.images[0], swapped[0])
    return replace(s.crops, swapped=np.stack(made))


def latent_average(s: Stretch, sigma: float) -> Crops:
    """ẑ_0 averaged along the track before it is decoded."""
    held: list[torch.Tensor] = []
    plain = loop.guided_swap

    def kept(*values: Any, **named: Any) -> torch.Tensor:
        held.append(plain(*values, **named))
        return held[-1]

    loop.guided_swap = kept
    try:
        settings = s.settings.model_copy(update={"batch": 1})
        SwapStage(s.networks, settings, s.source).process(s.crops)
    finally:
        loop.guided_swap = plain
    z = torch.from_numpy(gaussian(torch.cat(held).numpy(), sigma))
    with torch.no_grad():
        made = [s.networks.decode(row[None])[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255 for row in z]
    assert s.crops.masks is not None
    strength = s.settings.colour_match
    return replace(s.crops, swapped=match_colour(np.stack(made), s.crops.images, s.crops.masks, strength))


def shared_guidance(s: Stretch) -> Crops:
    """All frames of a batch are led by their mean gradient."""
    plain = sampler.guidance_gradient

    def mean(*values: Any, **named: Any) -> Any:
        made = plain(*values, **named)
        if made.gradient is None:
            return made
        return made._replace(gradient=made.gradient.mean(0, keepdim=True).expand_as(made.gradient))

    sampler.guidance_gradient = mean
    try:
        return s.swap()
    finally:
        sampler.guidance_gradient = plain


def sharpness(s: Stretch, crops: Crops) -> float:
    """Detail of the swapped face over the original's: σ of the Laplacian within the mask."""
    assert crops.masks is not None
    shares = []
    first = int(crops.frames[0])
    for i, picture in enumerate(s.pasted(crops)):
        index = first + i
        _, (alpha,) = PasteStage().process(([Frame(index, picture)], [between(crops, index, index + 1)]))
        assert alpha is not None
        both = [
            cv2.Laplacian(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.CV_32F)[alpha > 0.9].std()
            for p in (picture, s.frames[first + i])
        ]
        shares.append(both[0] / both[1])
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("causes", "remedies", "judged"), nargs="?", default="judged")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("clip", type=Path, nargs="?", default=root / "examples/clip.mp4")
    parser.add_argument("--source", type=Path, default=root / "examples/face-2.png")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--start", type=float)
    parser.add_argument("--end", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    s = Stretch.open(arguments)
    say = Console(width=200, highlight=False, markup=False).print
    say(f"{arguments.clip.name}, {len(s.crops)} frames, {arguments.preset} {' '.join(arguments.set)}")
    if arguments.what == "judged":
        full = s.swap()
        steadied = steady(full, s.settings.steady, 0, int(full.frames[-1]) + 1)
        say("| | warp ratio | light | identity | spread | original's | jitter | original's | sharpness |")
        say("|---|---|---|---|---|---|---|---|---|")
        for name, crops in (("frame by frame", full), (f"steady = {s.settings.steady}", steadied)):
            m = s.measured(crops, judged=True)
            say(
                f"| {name} | {m.warp_ratio:.2f} | {m.light_ratio:.2f} | {m.identity:.3f} | "
                f"{m.identity_spread:.4f} | {m.original_spread:.4f} | {m.jitter:.2f} | "
                f"{m.original_jitter:.2f} | {sharpness(s, crops):.2f} |",
            )
        return
    say("| | warp ratio | light | sharpness |\n|---|---|---|---|")
    for name, make in (causes(s) if arguments.what == "causes" else remedies(s)).items():
        crops = make()
        m = s.measured(crops)
        say(f"| {name} | {m.warp_ratio:.2f} | {m.light_ratio:.2f} | {sharpness(s, crops):.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
