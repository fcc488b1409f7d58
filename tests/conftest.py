"""What several test files need: the shipped media, and the real command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from ldvid.stages.align import AlignStage
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import Detector, open_detector
from ldvid.stages.records import Crops, SourceFace, Track
from ldvid.stages.source import load_source
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack, open_pack

ROOT = Path(__file__).resolve().parents[1]
DEVELOPMENT_DATA = ROOT.parent / "shared"

# A report of every swap would be most of what many tests do; those of reports ask for it.
os.environ["LDVID_REPORT"] = "0"

settings.register_profile("untimed", deadline=None)  # how long a test takes is the machine's affair
settings.load_profile("untimed")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``shared`` are skipped where the development data isn't beside the repository."""
    if DEVELOPMENT_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="needs the development data, which is not part of the repository")
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def example_clip() -> Path:
    """48 frames of one man, 480×270, 12 frames/s, H.264 without sound."""
    return ROOT / "examples/clip.mp4"


@pytest.fixture(scope="session")
def cut(pack: Pack, detector: Detector, example_clip: Path) -> Callable[[Sequence[int]], Crops]:
    """Cuts the aligned crops of these frames of the example clip, as of track 3."""

    def crops(indices: Sequence[int]) -> Crops:
        reader = open_reader(probe(example_clip), "pyav")
        frames = [frame for i in indices for frame in reader.read(i, i + 1)]
        found = [detector.detect(f.rgb)[0] for f in frames]
        n = len(found)
        track = Track(
            3, 0, np.array(indices, np.int64), np.stack([d.box for d in found]),
            np.stack([d.landmarks for d in found]), np.ones(n, np.float32), np.zeros(512, np.float32),
        )  # fmt: skip
        return AlignStage(track, pack.manifest.template_points(), 256).process(frames)

    return crops


@pytest.fixture(scope="session")
def example_face() -> Path:
    """A generated portrait, 512×512."""
    return ROOT / "examples/face.png"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """``two-faces.jpg`` and ``no-face.mp4``."""
    return ROOT / "tests/data"


@pytest.fixture(scope="session")
def command_line() -> list[str]:
    """How the tests start the installed command with this Python."""
    return [sys.executable, "-m", "ldvid"]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For commands in a process of their own: one thread each, so that a busy machine slows them little."""
    return {**os.environ, "COLUMNS": "100", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def ldvid(command_line: list[str], environment: dict[str, str]) -> Command:
    """Runs ``ldvid ARGS`` in a process of its own, as a user would; returns what it said and its code."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [*command_line, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=environment,
            **options,  # type: ignore[call-overload]
        )
        return done

    return run


@pytest.fixture(scope="session")
def pack() -> Pack:
    """The embedded pack, verified."""
    return open_pack("starter")


@pytest.fixture(scope="session")
def networks(pack: Pack) -> Networks:
    """All its networks on the CPU."""
    return Networks.load(pack, "cpu")


@pytest.fixture(scope="session")
def detector(pack: Pack) -> Detector:
    """Its face detector, at the default threshold."""
    return open_detector(pack, 0.6)


@pytest.fixture(scope="session")
def faces(
    pack: Pack, networks: Networks, detector: Detector, example_face: Path
) -> tuple[SourceFace, SourceFace]:
    """The two example portraits as aligned sources."""
    paths = (example_face, example_face.with_name("face-2.png"))
    one, two = (load_source(p, pack, detector, networks.embed, None)[0] for p in paths)
    return one, two
