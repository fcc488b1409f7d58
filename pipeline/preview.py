"""``ldvid preview``: one moment of a clip, before and after, in seconds instead of minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError, OutputExistsError, SettingsError
from .picture import is_picture
from .preview_grid import Grid
from .progress import Listener, Silent
from .provenance import container_tags
from .request import SwapRequest
from .target import check_inputs, put_in_place, staged

if TYPE_CHECKING:
    from ..configs import Settings
    from ..stages.records import U8, Detection, Frame, SourceFace
    from ..stages.swap.pack import Pack
    from .still import StillSwap, StillSwapper


def preview_output(clip: Path, at: float, grid: Grid | None = None, *, debug: bool = False) -> Path:
    """``clip.mp4`` at 2.5 s → ``clip.preview-2.5s.png``; a picture has no time. A grid's keys follow:
    ``clip.preview-2.5s.steps-eta.png``; with an overlay, ``.debug``."""
    whole = clip.resolve() if clip.name in ("", "..") else clip
    stem = whole.name if whole.is_dir() else whole.stem
    name = f"{stem}.preview" if is_picture(clip) else f"{stem}.preview-{at:g}s"
    if grid is not None:
        name += "." + "-".join(axis.key for axis in grid.axes)
    return whole.with_name(f"{name}.debug.png" if debug else f"{name}.png")


def preview(
    request: SwapRequest,
    at: float = 0.0,
    samples: int = 1,
    *,
    grid: Grid | None = None,
    zoom: bool = False,
    listener: Listener | None = None,
) -> Path:
    """Write the frame shown at ``at`` seconds as a PNG: original, mask, and ``samples`` swaps beside it.

    The face is found in that frame alone, so its landmarks lack the clip's smoothing, and the swap is
    the clip's own but for that. The swaps use the seeds ``seed``, ``seed + 1`` and so on; with a ``grid``
    they are made with its settings instead, each under its label. ``zoom`` shows the head alone. With the
    setting ``debug_overlay`` it is drawn on the swaps.

    Raises:
        LdvidError: any of the tree in ``errors``; nothing is left of what was not finished.
    """
    listener = listener if listener is not None else Silent()
    if samples < 1:
        raise SettingsError(f"--samples {samples}: at least 1")
    if grid is not None and samples > 1:
        raise SettingsError("--samples with --grid: a grid compares seeds too, --grid seed=0,1,2")
    debug = request.settings.debug_overlay
    output = request.output or preview_output(request.clip, at, grid, debug=debug)
    _check(request, output, grid)
    frame = _frame(request, at)
    banner = "" if is_picture(request.clip) else f"  {at:g} s"
    bench = _Bench(request, frame.rgb, f"{request.clip} at {at:g} s", banner, listener.warn)
    seed = request.settings.seed
    seeds = [request.settings.model_copy(update={"seed": seed + i}) for i in range(samples)]
    wanted = [seeds] if grid is None else grid.settings
    listener.start("preview", sum(map(len, wanted)))
    rows: list[list[StillSwap]] = []
    try:
        for row in wanted:
            rows.append([])
            for settings in row:
                rows[-1].append(bench.swap(settings))
                listener.advance("preview")
        listener.finish("preview")
    finally:
        listener.close()
    show = bench.zoomed if zoom else bench.whole
    picture = panel(show(rows[0])) if grid is None else grid.draw([show(row) for row in rows])
    with staged(output) as part:
        try:
            _write(part, picture, container_tags(bench.pack, "picture"))
        except OSError as error:
            raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error
        put_in_place(part, output, overwrite=request.overwrite)
    return output


def panel(stills: Sequence[StillSwap]) -> U8:
    """Original, mask and swaps side by side, (H, (2 + N) W, 3) uint8 RGB."""
    import numpy as np

    return np.hstack([stills[0].original, stills[0].mask_picture(), *(still.swapped for still in stills)])


def _check(request: SwapRequest, output: Path, grid: Grid | None) -> None:
    """All that can be refused before anything is loaded."""
    from ..stages.swap.guidance import build_terms
    from ..stages.swap.pack import open_pack

    if output.suffix.lower() != ".png":
        raise SettingsError(f"--output {output}: a preview is a PNG; name it .png")
    for photo in request.pictures:
        check_inputs(request.clip, photo)
    if output.resolve() in [p.resolve() for p in (request.clip, *request.pictures)]:
        raise SettingsError(f"--output {output}: it would replace an input; choose another")
    if output.is_dir() or (output.exists() and not request.overwrite):
        raise OutputExistsError(f"{output} exists; give --overwrite to replace it, or another name with -o")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; make it first")
    for settings in [request.settings] if grid is None else [s for row in grid.settings for s in row]:
        build_terms(settings.guidance)
        if grid is not None:
            open_pack(settings.pack).manifest.check(settings.conditioning)


@dataclass
class _Loaded:
    """What swaps with one pack and number format share."""

    swapper: StillSwapper
    faces: list[Detection]
    source: SourceFace


class _Bench:
    """Swaps one picture with any settings; what they can share is loaded once."""

    def __init__(
        self, request: SwapRequest, picture: U8, what: str, banner: str, warn: Callable[[str], None]
    ) -> None:
        self._request, self._picture, self._what, self._banner = request, picture, what, banner
        self._warn, self._said = warn, set[str]()
        self._loaded: dict[tuple[str, str, float], _Loaded] = {}

    def _at_hand(self, settings: Settings) -> _Loaded:
        from ..stages.source import load_average
        from .still import StillSwapper

        key = (settings.pack, settings.dtype, settings.detector_threshold)
        if key not in self._loaded:
            same = next((v.swapper for k, v in self._loaded.items() if k[:2] == key[:2]), None)
            shared = {} if same is None else {"pack": same.pack, "networks": same.networks}
            swapper = StillSwapper(settings, device=self._request.device, **shared)  # type: ignore[arg-type]
            faces = swapper.faces(self._picture, self._what)
            source, messages = load_average(
                self._request.wanted[0].photos,
                swapper.pack,
                swapper.detector,
                swapper.networks.embed,
                self._request.source_face,
            )
            for message in messages:
                if message not in self._said:  # another pack may say the same again
                    self._warn(message)
                    self._said.add(message)
            self._loaded[key] = _Loaded(swapper, faces, source)
        return self._loaded[key]

    def swap(self, settings: Settings) -> StillSwap:
        """One swap of the largest face, with its overlay if that is asked for."""
        from .still import overlaid

        loaded = self._at_hand(settings)
        swapper = loaded.swapper.like(settings)
        still = swapper.swap(self._picture, loaded.source, face=loaded.faces[0])
        if not settings.debug_overlay:
            return still
        # The panel of the mask shows the paste's, not what was drawn.
        return replace(overlaid(still, loaded.faces, self._banner), mask=still.mask)

    @property
    def pack(self) -> Pack:
        """Of the first swap."""
        return next(iter(self._loaded.values())).swapper.pack

    def whole(self, stills: Sequence[StillSwap]) -> list[StillSwap]:
        """As they are."""
        return list(stills)

    def zoomed(self, stills: Sequence[StillSwap]) -> list[StillSwap]:
        """The head alone, all of one size."""
        from .still import zoomed

        return [zoomed(still, stills[0].landmarks) for still in stills]


def _frame(request: SwapRequest, at: float) -> Frame:
    from ..stages.decode import open_reader, probe
    from ..stages.folder import FolderReader, scan_picture

    if is_picture(request.clip):
        return next(FolderReader(scan_picture(request.clip)).read(0, 1))
    info = probe(request.clip)
    seconds = [float((t - info.timestamps[0]) * info.time_base) for t in info.timestamps]
    end = seconds[-1] + float(info.durations[-1] * info.time_base)
    if not 0 <= at < end:
        raise SettingsError(f"--at {at:g}: out of range; the clip is {end:.3f} s long")
    index = max(i for i, s in enumerate(seconds) if s <= at + 1e-6)
    reader = open_reader(info, request.settings.decoder)
    try:
        return next(iter(reader.read(index, index + 1))).at(0)
    finally:
        reader.close()


def _write(part: Path, picture: U8, tags: dict[str, str]) -> None:
    from ..stages.encode import encode_picture
    from ..stages.picture_tags import tag_picture

    part.write_bytes(tag_picture(encode_picture(picture, ".png"), ".png", tags))
