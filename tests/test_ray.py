"""Ray: the bytes of one machine, whatever the workers, the order or the history; nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ldvid.configs import Settings, load_settings
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.files import sha256_of
from ldvid.pipeline.request import RayOptions, Summary, SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.pipeline.work import Rendering
from ldvid.stages.records import Segment

ray = pytest.importorskip("ray")
from ldvid.pipeline.cluster.executor import RayExecutor  # noqa: E402 - needs Ray

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
END = 6.5 / 12  # seconds: 7 frames, four segments, the last of one frame
SMALL = """
    steps = 1
    batch = 2
    segment_frames = 2
    keyframe_interval = 2
    steady = 0.4
    gradient = "clean"
    guidance_decoder = "preview"

    [[guidance]]
    term = "identity"
    jitter = 1.0
"""


class Backwards(RayExecutor):
    """Hands its segments out from the last to the first."""

    def render(self, work: Any, ledger: Any, segments: Sequence[Segment], *others: Any) -> Rendering:
        return super().render(work, ledger, segments[::-1], *others)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of all runs here, as a file."""
    file = tmp_path_factory.mktemp("config") / "small.toml"
    file.write_text(textwrap.dedent(SMALL))
    return file


@pytest.fixture(scope="module")
def settings(config: Path) -> Settings:
    return load_settings("cpu", config=config)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that this process is connected to, with more logical CPUs than the machine has."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    assert ray.is_initialized(), "a connection that was there is left as it was"
    ray.shutdown()


@pytest.fixture(scope="module")
def one_worker(cluster: None) -> Iterator[RayExecutor]:
    with Backwards(RayOptions(workers=1), Policy()) as executor:
        yield executor


def request(clip: Path, face: Path, settings: Settings, output: Path, **more: Any) -> SwapRequest:
    return SwapRequest(clip, face, settings, output, end=END, threads=1, device="cpu", **more)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, example_clip: Path, example_face: Path, settings: Settings
) -> tuple[str, Summary]:
    """What one machine makes of it."""
    output = tmp_path_factory.mktemp("local") / "out.mp4"
    summary = swap_clip(request(example_clip, example_face, settings, output))
    assert (summary.frames_swapped, summary.segments, summary.workers) == (7, 4, 1)
    return sha256_of(output), summary


def test_one_worker_backwards_and_after_resume(
    tmp_path: Path,
    example_clip: Path,
    example_face: Path,
    settings: Settings,
    undisturbed: tuple[str, Summary],
    one_worker: RayExecutor,
) -> None:
    job = tmp_path / "job"
    first = swap_clip(
        request(example_clip, example_face, settings, tmp_path / "a.mp4", job=job), None, one_worker
    )
    assert sha256_of(tmp_path / "a.mp4") == undisturbed[0]
    assert (first.frames_swapped, first.segments, first.segments_resumed) == (7, 4, 0)
    assert first.retried == first.passed_through == ()
    for index in (0, 2):
        (job / f"segments/{index:06d}.mkv").unlink()
    (job / "segments/000003.mkv").write_bytes(b"damaged")
    again = swap_clip(
        request(example_clip, example_face, settings, tmp_path / "b.mp4", job=job), None, one_worker
    )
    assert (again.frames_swapped, again.segments_resumed) == (7, 1)
    assert sha256_of(tmp_path / "b.mp4") == undisturbed[0]
    report = json.loads((tmp_path / "b.mp4.json").read_text())
    assert report["output"]["sha256"] == undisturbed[0]


def test_a_job_begun_on_a_cluster_is_finished_on_one_machine_and_the_other_way_round(
    tmp_path: Path,
    example_clip: Path,
    example_face: Path,
    settings: Settings,
    undisturbed: tuple[str, Summary],
    one_worker: RayExecutor,
) -> None:
    job, executor = tmp_path / "job", None
    for index, name in enumerate(("ray.mp4", "local.mp4", "ray-again.mp4")):
        executor = one_worker if name.startswith("ray") else None
        asked = request(example_clip, example_face, settings, tmp_path / name, job=job)
        summary = swap_clip(asked, None, executor)
        assert sha256_of(tmp_path / name) == undisturbed[0], name
        assert summary.segments_resumed == (0 if index == 0 else 3)
        (job / f"segments/{index:06d}.mkv").unlink()


def test_four_workers(
    tmp_path: Path,
    example_clip: Path,
    example_face: Path,
    settings: Settings,
    undisturbed: tuple[str, Summary],
    cluster: None,
) -> None:
    with RayExecutor(RayOptions(workers=4), Policy()) as executor:
        summary = swap_clip(
            request(example_clip, example_face, settings, tmp_path / "out.mp4"), None, executor
        )
    assert sha256_of(tmp_path / "out.mp4") == undisturbed[0]
    assert (summary.workers, summary.frames_swapped) == (4, 7)
    assert 0 < summary.swap_share <= 1


AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def at_work_in(folder: Path, *, but: tuple[bytes, ...] = ()) -> list[int]:
    """The processes whose working directory is that folder; ``but`` those that are called so."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
                if (entry / "cwd").readlink() == folder and not name.startswith(but):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def gone(folder: Path, seconds: float = 15, *, but: tuple[bytes, ...] = ()) -> bool:
    """Whether all of them end within that time."""
    until = time.monotonic() + seconds
    while at_work_in(folder, but=but):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def test_the_command_with_two_workers(
    tmp_path: Path,
    example_clip: Path,
    example_face: Path,
    config: Path,
    undisturbed: tuple[str, Summary],
    command_line: list[str],
    environment: dict[str, str],
) -> None:
    output = tmp_path / "out.mp4"
    arguments = ["swap", example_clip, "--source", example_face, "-o", output, "--config", config]
    flags = ["--end", END, "--threads", 1, "--executor", "ray", "--workers", 2, "--json"]
    process = subprocess.Popen(
        [*command_line, *map(str, (*arguments, *flags))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    most = 0
    while process.poll() is None:
        most = max(most, len(at_work_in(tmp_path)))
        time.sleep(0.5)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert most > 5, "a cluster was started for it"
    assert gone(tmp_path), "and is gone with it"
    assert sha256_of(output) == undisturbed[0]
    summary = json.loads(stdout)
    assert (summary["workers"], summary["frames_swapped"]) == (2, 7)
    assert summary["device"] == "cpu"
    assert {"decode", "align", "mask", "swap", "paste", "encode"} <= summary["seconds"].keys()
    assert all(summary["seconds"][s] > 0 for s in ("decode", "mask", "swap", "encode"))
    assert 0 < summary["swap_share"] <= 1
    strange = [line for line in stderr.splitlines() if not line.startswith("ldvid: ")]
    assert not strange, "nothing of Ray's is said"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "out.mp4.json"]


def entries(job: Path) -> int:
    """How many segments are in the ledger."""
    return len(list((job / "segments").glob("??????.json")))


@pytest.mark.parametrize("end", ["Ctrl-C", "kill -9"])
def test_a_driver_that_is_stopped_takes_its_cluster_along(
    tmp_path: Path,
    example_clip: Path,
    example_face: Path,
    config: Path,
    settings: Settings,
    undisturbed: tuple[str, Summary],
    command_line: list[str],
    environment: dict[str, str],
    end: str,
) -> None:
    job, output = tmp_path / "job", tmp_path / "out.mp4"
    arguments = ["swap", example_clip, "--source", example_face, "-o", output, "--config", config]
    flags = ["--end", END, "--threads", 1, "--executor", "ray", "--workers", 1, "--job", job]
    process = subprocess.Popen(
        [*command_line, *map(str, (*arguments, *flags))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
    )
    while process.poll() is None and not entries(job):
        time.sleep(0.1)
    assert process.poll() is None and len(at_work_in(tmp_path)) > 5, "in the middle of it"
    began = time.monotonic()
    if end == "Ctrl-C":  # as a terminal does: to all that it started
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    stdout, stderr = process.communicate(timeout=30)
    took = time.monotonic() - began
    if end == "Ctrl-C":
        assert took < 10
        assert process.returncode == 130
        *progress, last = stderr.splitlines()
        assert last.startswith(f"ldvid: error: stopped; what is done is kept in {job}")
        assert stdout == "" and all(line.startswith("ldvid: ") for line in progress), stderr
    # After kill -9 these two idle ones of Ray's, which hold no cluster, wait for its head for another minute.
    assert gone(tmp_path, but=AGENTS if end == "kill -9" else ())
    assert not output.exists()
    done = entries(job)
    summary = swap_clip(request(example_clip, example_face, settings, output, job=job))
    assert 0 < summary.segments_resumed == done < 4
    assert sha256_of(output) == undisturbed[0]


def test_one_machine_never_imports_ray(tmp_path: Path, example_clip: Path, example_face: Path) -> None:
    script = """
        import sys
        from ldvid.cli import main
        assert main(["presets"]) == 0
        assert main(sys.argv[1:]) == 0
        loaded = sorted(m for m in sys.modules if m.split(".")[0] == "ray" or ".cluster" in m)
        assert not loaded, loaded
    """
    small = ["steps=1", "batch=1", "segment_frames=1", "keyframe_interval=1", "start=target"]
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(script), "swap", example_clip, "--source", example_face),
            *("-o", tmp_path / "out.mp4", "--end", "0.08", "--threads", "1", "--quiet"),
            *(part for value in small for part in ("--set", value)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 1000
