"""``ldvid swap PICTURE``: a still instead of a clip, in as many variants as asked for."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FaceError, OutputError, SettingsError
from .assign import load_sources, sources_of
from .device import compute_device, cpu_threads, limit_gpu_memory
from .files import copy_file, sha256_of
from .job import Identity
from .opening import identity_of
from .progress import Listener, Silent, Stopwatch, peak_memory
from .provenance import container_tags, describe_device, record, report_path, write_record
from .request import Summary, SwapRequest
from .target import check_inputs, check_output, put_in_place, staged, uninterrupted

if TYPE_CHECKING:
    from ..stages.records import Detection, Frame, SourceFace
    from ..stages.swap.pack import Pack
    from .still import StillSwap, StillSwapper

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")  # what ``stages.folder`` reads


def is_picture(path: Path) -> bool:
    """Whether ``ldvid swap`` takes a file as a still, by its name; a GIF is a clip."""
    return path.suffix.lower() in PICTURES and not path.is_dir()


def picture_outputs(request: SwapRequest, samples: int) -> list[Path]:
    """``photo.jpg`` → ``photo.swapped.jpg``; of several variants, ``photo.swapped.1.jpg`` and so on."""
    clip, output = request.clip, request.output
    if output is None:
        made = "swapped.debug" if request.settings.debug_overlay else "swapped"
        output = clip.with_name(f"{clip.stem}.{made}{clip.suffix}")
    if samples == 1:
        return [output]
    return [output.with_name(f"{output.stem}.{i + 1}{output.suffix}") for i in range(samples)]


def swap_picture(request: SwapRequest, samples: int = 1, listener: Listener | None = None) -> list[Summary]:
    """Swap the source's face onto the largest face of a picture.

    Args:
        request: ``clip`` is the picture; alpha and 16 bits are kept where the output's format holds them.
        samples: variants, of the seeds ``seed``, ``seed + 1``, …, each a file with a record of its own.

    Raises:
        LdvidError: any of the tree in ``errors``; nothing is left of what was not finished.
    """
    listener = listener if listener is not None else Silent()
    watch = Stopwatch()
    outputs = _check(request, samples)
    try:
        limit_gpu_memory(request.max_memory)
        with cpu_threads(request.threads):
            with watch.time("load"):
                from .still import StillSwapper

                swapper = StillSwapper(request.settings, device=request.device)
            frame = _read(request.clip)
            return _swap_all(request, swapper, frame, outputs, listener, watch)
    finally:
        listener.close()


def _check(request: SwapRequest, samples: int) -> list[Path]:
    for flag, value in (("--start", request.start), ("--end", request.end), ("--job", request.job)):
        if value is not None:
            raise SettingsError(f"{flag}: {request.clip} is a picture, which has no {flag.strip('-')}")
    numbered = next((w for w in request.wanted if w.person is not None), None)
    for flag, given in (
        ("--plan", request.plan),
        ("--reference", request.reference),
        ("--select", request.select if request.select != "largest" else None),
        ("--source …@N", numbered),
        ("--source", request.wanted[1:]),
    ):
        if given:
            raise SettingsError(
                f"{flag}: who gets what is for clips; in a picture the largest face is swapped"
            )
    if samples < 1:
        raise SettingsError(f"--samples {samples}: at least 1")
    if request.settings.seed + samples > 2**63:
        raise SettingsError(f"--seed {request.settings.seed}: too large for {samples} variants after it")
    for photo in request.pictures:
        check_inputs(request.clip, photo)
    outputs, inputs = picture_outputs(request, samples), (request.clip, *request.pictures)
    for output in outputs:
        if output.suffix.lower() not in PICTURES:
            raise SettingsError(f"--output {output}: name a picture: {', '.join(PICTURES)}")
        check_output(output, report_path(output), inputs, overwrite=request.overwrite)
    return outputs


def _read(path: Path) -> Frame:
    """The picture with all it stores, read as a folder of one frame is."""
    from ..stages.folder import FolderReader, scan_picture

    return next(FolderReader(scan_picture(path)).read(0, 1))


def _swap_all(
    request: SwapRequest,
    swapper: StillSwapper,
    frame: Frame,
    outputs: list[Path],
    listener: Listener,
    watch: Stopwatch,
) -> list[Summary]:
    with watch.time("analyse"):
        source, found, warnings = _faces(request, swapper, frame)
    for message in warnings:
        listener.warn(message)
    from .still import overlaid

    listener.start("swap", len(outputs))
    device, summaries = describe_device(swapper.networks), []
    with contextlib.ExitStack() as stack:
        parts = []
        for number, output in enumerate(outputs):
            settings = swapper.settings.model_copy(update={"seed": request.settings.seed + number})
            part, record_part = (stack.enter_context(staged(p)) for p in (output, report_path(output)))
            if found:
                with watch.time("swap"):
                    still = swapper.swap(frame.rgb, source, seed=settings.seed, face=found[0])
                if settings.debug_overlay:
                    still = overlaid(still, found)
                _write(part, output, frame, still, swapper.pack, request.clip)
            else:
                copy_file(request.clip, part)
            identity = _identity(replace(request, settings=settings), swapper.pack)
            values = record(
                identity=identity,
                settings=settings,
                pack=swapper.pack,
                source=request.source,
                sources=sources_of(request, identity.who),
                device=device,
                frames=1,
                swapped=[(0, 0)] if found else [],
                made=part,
                name=output.name,
                kind="picture",
            )
            write_record(record_part, values)
            parts.append((part, record_part))
            listener.advance("swap")
            summaries.append(_summary(output, len(found), watch, tuple(warnings), device))
        listener.finish("swap")
        with uninterrupted():
            for output, (part, record_part) in zip(outputs, parts, strict=True):
                put_in_place(part, output, overwrite=request.overwrite)
                put_in_place(record_part, report_path(output), overwrite=True)
    return summaries


def _faces(
    request: SwapRequest, swapper: StillSwapper, frame: Frame
) -> tuple[SourceFace, list[Detection], list[str]]:
    """The source, the faces of the picture, largest first, and what the user should know."""
    (source,), _, warnings = load_sources(request, swapper.pack, swapper.detector, swapper.networks)
    found = swapper.detector.detect(frame.rgb)
    if not found and not request.allow_no_face:
        raise FaceError(
            f"{request.clip}: no face was found; give --allow-no-face for a copy of it, or "
            f"--set detector_threshold= with less than {request.settings.detector_threshold:g}"
        )
    if not found:
        warnings.append("no face was found in the picture: the output is a copy of it")
        if request.output is not None and request.output.suffix.lower() != request.clip.suffix.lower():
            raise SettingsError(f"--output {request.output}: a copy of {request.clip} keeps its type")
    if len(found) > 1:
        warnings.append(f"{request.clip}: {len(found)} faces; the largest is swapped")
    return source, found, warnings


def _summary(output: Path, faces: int, watch: Stopwatch, warnings: tuple[str, ...], device: str) -> Summary:
    return Summary(
        output=output,
        report=report_path(output),
        frames=1,
        frames_swapped=int(faces > 0),
        faces=faces,
        segments=1,
        segments_resumed=0,
        seconds={k: round(v, 3) for k, v in watch.seconds.items()},
        warnings=warnings,
        device=device,
        peak_memory=peak_memory(),
    )


def _write(part: Path, output: Path, frame: Frame, still: StillSwap, pack: Pack, original: Path) -> None:
    """Only the pixels under the mask are new; the rest is the stored picture's, alpha and 16 bits too."""
    from ..stages.compose import compose_array
    from ..stages.encode import encode_picture
    from ..stages.picture_tags import tag_picture

    array = compose_array(frame, still.swapped, still.mask)
    suffix = part.suffix.lower()
    lost = "transparency" if array.ndim == 3 and array.shape[2] == 4 else "16 bits"
    if suffix in (".jpg", ".jpeg") and (lost == "transparency" or array.itemsize > 1):
        raise SettingsError(f"{original} has {lost}, which {suffix} can't hold; name the output .png")
    try:
        data = encode_picture(array, suffix)
        part.write_bytes(tag_picture(data, suffix, container_tags(pack, "picture"), original))
    except OSError as error:
        raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error


def _identity(request: SwapRequest, pack: Pack) -> Identity:
    from ..stages.swap.networks import resolve_dtype

    computed = compute_device(request.device, request.threads)
    dtype = resolve_dtype(request.settings.dtype, computed[0])
    return identity_of(request, sha256_of(request.clip), pack, computed, dtype)
