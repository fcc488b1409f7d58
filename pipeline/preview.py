"""``ldvid preview``: one moment of a clip, before and after, in seconds instead of minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError, OutputExistsError, SettingsError
from .picture import is_picture
from .provenance import container_tags
from .request import SwapRequest
from .target import check_inputs, put_in_place, staged

if TYPE_CHECKING:
    from ..stages.records import U8, Frame
    from .still import StillSwap


def preview_output(clip: Path, at: float) -> Path:
    """``clip.mp4`` at 2.5 s → ``clip.preview-2.5s.png``; a picture has no time."""
    whole = clip.resolve() if clip.name in ("", "..") else clip
    stem = whole.name if whole.is_dir() else whole.stem
    return whole.with_name(f"{stem}.preview.png" if is_picture(clip) else f"{stem}.preview-{at:g}s.png")


def preview(request: SwapRequest, at: float = 0.0, samples: int = 1) -> Path:
    """Write the frame shown at ``at`` seconds as a PNG: original, mask, and ``samples`` swaps beside it.

    The face is found in that frame alone, so its landmarks lack the clip's smoothing, and the swap is
    the clip's own but for that. The swaps use the seeds ``seed``, ``seed + 1`` and so on.

    Raises:
        LdvidError: any of the tree in ``errors``; nothing is left of what was not finished.
    """
    from .still import StillSwapper

    if samples < 1:
        raise SettingsError(f"--samples {samples}: at least 1")
    output = request.output if request.output is not None else preview_output(request.clip, at)
    if output.suffix.lower() != ".png":
        raise SettingsError(f"--output {output}: a preview is a PNG; name it .png")
    check_inputs(request.clip, request.source)
    if output.resolve() in (request.clip.resolve(), request.source.resolve()):
        raise SettingsError(f"--output {output}: it would replace an input; choose another")
    if output.is_dir() or (output.exists() and not request.overwrite):
        raise OutputExistsError(f"{output} exists; give --overwrite to replace it, or another name with -o")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; make it first")
    frame = _frame(request, at)
    swapper = StillSwapper(request.settings, device=request.device)
    face = swapper.find(frame.rgb, f"{request.clip} at {at:g} s")
    source = swapper.source(request.source, request.source_face)
    seed = request.settings.seed
    stills = [swapper.swap(frame.rgb, source, seed=seed + i, face=face) for i in range(samples)]
    with staged(output) as part:
        try:
            _write(part, panel(stills), container_tags(swapper.pack, "picture"))
        except OSError as error:
            raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error
        put_in_place(part, output, overwrite=request.overwrite)
    return output


def panel(stills: list[StillSwap]) -> U8:
    """Original, mask and swaps side by side, (H, (2 + N) W, 3) uint8 RGB."""
    import numpy as np

    mask = (stills[0].mask[..., None] * np.float32(255)).round().astype(np.uint8).repeat(3, 2)
    return np.hstack([stills[0].original, mask, *(still.swapped for still in stills)])


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
        return replace(next(iter(reader.read(index, index + 1))), index=0)
    finally:
        reader.close()


def _write(part: Path, picture: U8, tags: dict[str, str]) -> None:
    from ..stages.encode import encode_picture
    from ..stages.picture_tags import tag_picture

    part.write_bytes(tag_picture(encode_picture(picture, ".png"), ".png", tags))
