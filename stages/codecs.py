"""Which encoder, quality and pixel format: settings checked against what this FFmpeg can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

import av
from av.codec.codec import Codec
from av.codec.context import CodecContext

from ..errors import SettingsError
from .colour import has_planes, is_rgb, plain_format
from .records import ClipInfo

# Visually lossless; the scales differ: 0–51 for x264 and x265, 0–63 for VP9 and AV1.
_DEFAULT_QUALITY = {
    "libx264": 15.0,
    "libx264rgb": 15.0,
    "libx265": 16.0,
    "libvpx-vp9": 18.0,
    "libsvtav1": 18.0,
}
_SUGGESTED = ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "ffv1")
# x264 goes without macroblock-tree rate control: its AVX-512 code reads past the end of its rows where
# the width in macroblocks is no multiple of 16, and the same frames gave other bytes on another run.
# Its preset "veryfast" with the decisions of "medium" (subme) leaves a face stiller than either, for a
# quarter less of the processor than the latter (docs/performance.md).
_EXTRA = {
    "libx264": {"preset": "veryfast", "x264-params": "mbtree=0:subme=7"},
    "libx264rgb": {"preset": "veryfast", "x264-params": "mbtree=0:subme=7"},
    "libx265": {"preset": "medium", "x265-params": "open-gop=0:log-level=error"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "2", "row-mt": "1"},
    "libsvtav1": {"preset": "6"},
    "ffv1": {"level": "3", "slicecrc": "1"},
}
_YUV = re.compile(r"yuva?j?(4\d\d)p(\d+)?(le|be)?$")


def suggested_encoders() -> list[str]:
    """Encoders with a quality setting (or lossless) that this FFmpeg has."""
    return [name for name in _SUGGESTED if name in av.codecs_available]


def find_encoder(name: str) -> Codec:
    """The video encoder of that name.

    Raises:
        SettingsError: no such encoder, or not one for video.
    """
    try:
        codec = Codec(name, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise SettingsError(
            f"codec {name}: this FFmpeg has no such encoder; use one of {', '.join(suggested_encoders())}"
        ) from error
    if codec.type != "video":
        raise SettingsError(f"codec {name}: is for {codec.type}, not for video")
    return codec


def quality_options(codec: Codec, quality: float | None) -> tuple[float | None, dict[str, str]]:
    """The quality used, and the encoder's private options for it.

    Raises:
        SettingsError: a quality out of range, or for an encoder without a constant-quality mode.
    """
    private = {o.name for o in CodecContext.create(codec, "w").supported_options.private}
    options = dict(_EXTRA.get(codec.name, {}))
    knob = next((k for k in ("crf", "cq") if k in private), None)
    if knob is None:
        lossless = codec.lossless and not codec.lossy
        if quality is not None or not (lossless or codec.name.startswith("prores")):
            raise SettingsError(
                f"codec {codec.name}: has no constant-quality setting"
                + ("; leave quality out" if lossless else f"; use one of {', '.join(suggested_encoders())}")
            )
        return None, options
    top = 51 if "26" in codec.name or "nvenc" in codec.name else 63
    chosen = _DEFAULT_QUALITY.get(codec.name, 16.0) if quality is None else quality
    if not 0 <= chosen <= top:
        raise SettingsError(f"quality {chosen:g}: {codec.name} takes 0 (best) to {top}")
    if knob == "cq":
        options["rc"] = "vbr"
    return chosen, options | {knob: f"{chosen:g}"}


@dataclass(frozen=True, slots=True)
class _Sampling:
    """Pixels per chroma sample, and bits."""

    x: int
    y: int
    bits: int

    @staticmethod
    def of(pix_fmt: str) -> _Sampling:
        fmt = av.VideoFormat(pix_fmt, 64, 64)
        smallest = min(fmt.components, key=lambda c: c.width * c.height)
        return _Sampling(64 // smallest.width, 64 // smallest.height, fmt.components[0].bits)


def _usable(pix_fmt: str) -> bool:
    fmt = av.VideoFormat(pix_fmt)
    packed = len({c.plane for c in fmt.components}) < len(fmt.components)
    return has_planes(pix_fmt) and not (packed and (fmt.components[0].bits > 8 or len(fmt.components) == 4))


def _fits(codec: Codec, pix_fmt: str, info: ClipInfo) -> bool:
    """H.264 and H.265 crop to whole chroma samples: an odd side can't be subsampled."""
    s = _Sampling.of(pix_fmt)
    crops = any(k in codec.name for k in ("264", "265", "hevc"))
    return not crops or (info.width % s.x == 0 and info.height % s.y == 0)


def _candidates(source: str, info: ClipInfo) -> list[str]:
    """Formats by preference: the source's; its sampling and depth in plain planes; fuller, then less."""
    bits = min(12, _Sampling.of(source).bits) if source != "pal8" else 8
    depths = [b for b in (12, 10, 8) if b <= bits] or [8]
    match = _YUV.match(source)
    if match:
        chroma = match[1]
    elif is_rgb(source):
        chroma = "420" if bits == 8 else "444"  # 8-bit RGB is mostly GIF: what every player plays
    else:
        s = _Sampling.of(source)
        chroma = {(2, 2): "420", (2, 1): "422"}.get((s.x, s.y), "444")
    sampling = dict.fromkeys([chroma, "444", "422", "420"])
    planar = [f"yuv{c}p{'' if b == 8 else f'{b}le'}" for b in depths for c in sampling]
    return planar if is_rgb(source) else [source, *planar]


def choose_pix_fmt(codec: Codec, wanted: str | None, info: ClipInfo) -> str:
    """The pixel format to encode: the one asked for, or the input's, or the nearest the codec takes.

    Raises:
        SettingsError: the one asked for is unknown, or not taken by the codec, or not at this size.
    """
    listed = [f.name for f in codec.video_formats or ()]
    offered = [f for f in dict.fromkeys(plain_format(f) for f in listed) if _usable(f)]
    fitting = [f for f in offered if _fits(codec, f, info)]
    if wanted is not None:
        if wanted not in offered:
            raise SettingsError(f"pix_fmt {wanted}: {codec.name} takes {', '.join(offered)}")
        if wanted not in fitting:
            raise SettingsError(
                f"pix_fmt {wanted}: {codec.name} can't hold {info.width}×{info.height} in it; "
                f"use {', '.join(fitting) or 'another codec'}"
            )
        return wanted
    for candidate in _candidates(plain_format(info.pix_fmt), info):
        if candidate in fitting:
            return candidate
    if not fitting:
        raise SettingsError(f"codec {codec.name}: can't hold {info.width}×{info.height}; try {_SUGGESTED[0]}")
    return fitting[0]
