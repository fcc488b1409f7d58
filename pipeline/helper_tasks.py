"""What a helper does (``helpers``), in a process of its own: look at pieces of a clip, load segments, draw
masks, write segments. No network but the detector is here.

What goes wrong comes back as a value, with the stage and the frame it happened at.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..stages.mask_shape import MaskShape
from ..stages.records import F32, U8, Segment
from .load import Loaded, Loader
from .pieces import look_at
from .progress import Stopwatch
from .work import Work
from .write import Writer, entered

__all__ = ["Outcome", "begin", "draw", "load", "look_at", "write"]

LATER = 5  # how much nicer a helper is than its parent, which keeps a GPU busy
_KEPT = 4  # loaders and writers that stay open
_parts: OrderedDict[tuple[Path, str], Any] = OrderedDict()


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its result, or the error, the stage and the frame it happened at."""

    result: Loaded | None
    seconds: dict[str, float]
    error: Exception | None = None
    stage: str = ""
    frame: int | None = None


def begin(parent: int, folder: Path) -> None:
    """Make this process a helper of ``parent``: OpenCV takes one thread, Ctrl-C is the
    parent's, and the end of that, however it came, is the end of this, and of the ``folder`` of files on
    their way between them."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nice: Callable[[int], int] | None = getattr(os, "nice", None)  # not on Windows
    if nice is not None:
        nice(LATER)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)  # it may lie in memory
        os._exit(1)

    threading.Thread(target=watch, name="ldvid-parent", daemon=True).start()


def draw(shape: MaskShape, images: U8, landmarks: F32, seen: F32) -> F32:
    """As ``MaskShape.all``."""
    return shape.all(images, landmarks, seen)


def load(order: Path, segment: Segment) -> Outcome:
    """Decode and align; ``order`` is the pickled ``Work``."""

    def loader(work: Work) -> Loader:
        return Loader(work, Stopwatch(), keep=False, whole=True)

    return _tried(order, "load", loader, lambda part: part.load(segment))


def write(order: Path, swapped: Loaded) -> Outcome:
    """Paste, encode, and enter the segment into the job's ledger."""

    def done(writer: Writer) -> Loaded:
        entered(writer, writer.work.ledger(), swapped)
        return Loaded(swapped.segment, [])

    return _tried(order, "write", lambda work: Writer(work, Stopwatch(), work.ledger().segments_folder), done)


def _tried(order: Path, what: str, make: Callable[[Work], Any], call: Callable[[Any], Loaded]) -> Outcome:
    key = (order, what)
    watch = Stopwatch()
    part: Any = None
    try:
        if key not in _parts:
            _parts[key] = make(pickle.loads(order.read_bytes()))
            while len(_parts) > _KEPT:
                _parts.popitem(last=False)
        _parts.move_to_end(key)
        part = _parts[key]
        part.watch = watch
        return Outcome(call(part), watch.seconds)
    except Exception as error:
        _parts.pop(key, None)
        stage, frame = getattr(part, "stage", "") or what, getattr(part, "frame", None)
        return Outcome(None, watch.seconds, _portable(error), stage, frame)


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the way, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
