"""Faults on a real Ray cluster of several nodes: work is tried again, a job ends with the same bytes, or says
which segment, frame and stage it failed at and why.

The faults come from a user's guidance term and from files that break; nothing in ldvid is there for them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from ldvid.configs import Settings, load_settings
from ldvid.errors import InputError, JobError, PackError, SettingsError
from ldvid.pipeline.executor import Executor
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.progress import Silent
from ldvid.pipeline.request import RayOptions, SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.swap.networks import resolve_dtype
from ldvid.stages.swap.pack import Pack

ray = pytest.importorskip("ray")
from ldvid.pipeline.cluster.executor import RayExecutor  # noqa: E402 - needs Ray
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
TERM = '''
    import os, signal, time
    from pathlib import Path

    import torch

    class Faulty:
        """Harmless once "mended" lies in ``folder``. Marked frames (segment 1) are less green."""

        def __init__(self, kind, folder):
            self.kind, self.folder = kind, Path(folder)

        def first(self):
            try:
                (self.folder / "happened").touch(exist_ok=False)
            except FileExistsError:
                return False
            return True

        def loss(self, x_hat, context):
            if not (self.folder / "mended").exists():
                green = context.target[:, 1].mean() / context.target[:, 0].mean()
                self.fault(len(x_hat), green < 0.83)  # the others have 0.90
            return x_hat.square().mean((1, 2, 3))

        def fault(self, rows, marked):
            if self.kind == "memory" and rows > 2:
                raise torch.OutOfMemoryError("no memory left, says the test")
            if self.kind == "death" and marked or self.kind == "one death" and marked and self.first():
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "error" and marked:
                raise RuntimeError("the frame is poisoned")
            if self.kind == "node" and marked and self.first():
                import ray

                (self.folder / "node.tmp").write_text(ray.get_runtime_context().get_node_id())
                (self.folder / "node.tmp").rename(self.folder / "node")
                time.sleep(60)
'''
HANG = """
    import time
    from pathlib import Path

    def patch():
        from ldvid.stages import folder

        read = folder.read_frame

        def slow(path):
            flag = path.parent.parent / "hang" / path.name
            if flag.exists():
                flag.unlink()
                time.sleep(60)
            return read(path)

        folder.read_frame = slow
"""
SMALL = """
    steps = 1
    batch = 2
    segment_frames = 2
    keyframe_interval = 2
    gradient = "clean"
    guidance_decoder = "preview"
    guidance = [{ term = "faulty.py:Faulty", kind = "KIND", folder = "FOLDER" }]
"""
FRAMES, MARKED = 6, (2, 3)
POISONED = "guidance term Faulty: faulty.py, line 32: RuntimeError: the frame is poisoned"
Swap = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that does no work, and two machines; in their processes a frame's file may hang, see HANG."""
    hooks = tmp_path_factory.mktemp("hooks")
    (hooks / "ldvid_test_hang.py").write_text(textwrap.dedent(HANG))
    store: dict[str, Any] = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=5, **store)
    environment = {
        "env_vars": {"PYTHONPATH": str(hooks)},
        "worker_process_setup_hook": "ldvid_test_hang.patch",
    }
    ray.init(address=cluster.address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def failing(cluster: Cluster) -> Iterator[RayExecutor]:
    """Two workers; a segment is tried twice."""
    with RayExecutor(RayOptions(workers=2), Policy(retries=1)) as executor:
        yield executor


@pytest.fixture(scope="module")
def passing(cluster: Cluster) -> Iterator[RayExecutor]:
    """One worker; a segment is tried twice, for 12 seconds each, and then goes through as it is."""
    policy = Policy(retries=1, on_error="passthrough", time_limit=12)
    with RayExecutor(RayOptions(workers=1), policy) as executor:
        yield executor


@pytest.fixture
def frames(tmp_path: Path, example_clip: Path) -> Path:
    """Six PNG files, three segments; the second one's are less green."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in open_reader(probe(example_clip), "pyav").read(0, FRAMES):
        picture = frame.rgb[..., ::-1].copy()
        if frame.index in MARKED:
            picture[..., 1] = (picture[..., 1] * 0.85).astype("u1")
        assert cv2.imwrite(str(folder / f"{frame.index:03d}.png"), picture)
    return folder


def settings_of(folder: Path, kind: str, **changes: Any) -> Settings:
    """The term and the settings are files in ``folder``."""
    (folder / "faulty.py").write_text(textwrap.dedent(TERM))
    text = textwrap.dedent(SMALL).replace("KIND", kind).replace("FOLDER", str(folder))
    (folder / "settings.toml").write_text(text)
    # Without the average over time: what fails in one segment concerns no other.
    changes = {"steady": 0.0, **changes}
    return load_settings("cpu", config=folder / "settings.toml", overrides=changes)


@pytest.fixture
def swap(tmp_path: Path, frames: Path, example_face: Path) -> Swap:
    """``swap(kind, executor, listener, output=…)``: one run with the term of that kind."""

    def run(
        kind: str,
        executor: Executor | None,
        listener: Silent | None = None,
        *,
        name: str = "out",
        job: str = "job",
        pack_folder: Path | None = None,
        policy: Policy | None = None,
        **changes: Any,
    ) -> Any:
        request = SwapRequest(
            frames,
            example_face,
            settings_of(tmp_path, kind, **changes),
            tmp_path / name,
            job=tmp_path / job,
            pack_folder=pack_folder,
            threads=1,
            device="cpu",
            policy=policy or (executor.policy if executor is not None else Policy()),
        )
        return swap_clip(request, listener, executor)

    return run


def pictures(folder: Path) -> list[bytes]:
    """What the frames' files hold."""
    return [file.read_bytes() for file in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    """What the first undisturbed run gave; the same for all, as the faults change no number."""
    return []


@pytest.fixture
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, frames: Path, example_face: Path, expected: list[bytes]
) -> list[bytes]:
    """The frames that one machine makes without faults."""
    if not expected:
        folder = tmp_path_factory.mktemp("undisturbed")
        settings = settings_of(folder, "")
        swap_clip(SwapRequest(frames, example_face, settings, folder / "out", threads=1, device="cpu"))
        expected += pictures(folder / "out")
        assert len(expected) == FRAMES
    return expected


def mended(folder: Path) -> None:
    (folder / "mended").touch()


def done_in(job: Path) -> list[int]:
    """The segments with an entry in the ledger."""
    return sorted(int(f.stem) for f in (job / "segments").glob("??????.json"))


def test_a_worker_that_is_killed_costs_one_try(
    tmp_path: Path, swap: Swap, failing: RayExecutor, undisturbed: list[bytes]
) -> None:
    summary = swap("one death", failing)
    assert (tmp_path / "happened").exists(), "a worker was killed"
    assert pictures(tmp_path / "out") == undisturbed
    (tried,) = summary.retried
    assert tried.startswith("segment 1, swap: its worker died")
    assert (summary.passed_through, summary.frames_swapped) == ((), FRAMES)


def test_a_segment_that_kills_every_worker_fails_the_job(
    tmp_path: Path, swap: Swap, failing: RayExecutor, undisturbed: list[bytes]
) -> None:
    with pytest.raises(JobError, match=r"^segment 1, swap: its worker died .*\(2 attempts\)") as caught:
        swap("death", failing)
    assert any("the same command goes on from there" in note for note in caught.value.__notes__)
    assert not (tmp_path / "out").exists()
    kept = done_in(tmp_path / "job")
    assert 0 in kept and 1 not in kept, "what was done is kept"
    failure = json.loads((tmp_path / "job/segments/000001.failed.json").read_text())
    assert (failure["stage"], failure["attempts"]) == ("swap", 2)
    mended(tmp_path)
    summary = swap("death", None)
    assert summary.segments_resumed == len(kept)
    assert pictures(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("where", ["ray", "local"])
def test_an_error_of_one_frame_fails_the_job_with_frame_stage_and_reason(
    tmp_path: Path, swap: Swap, failing: RayExecutor, where: str
) -> None:
    executor = failing if where == "ray" else None
    with pytest.raises(SettingsError) as caught:
        swap("error", executor, policy=failing.policy)
    assert str(caught.value) == (f"segment 1, frame 2, swap: {POISONED} (2 attempts)")
    assert any("--on-error passthrough" in note for note in caught.value.__notes__)
    assert not (tmp_path / "out").exists()
    assert 0 in done_in(tmp_path / "job")


@pytest.mark.parametrize("where", ["ray", "local"])
def test_an_error_of_one_frame_passes_the_original_through(
    tmp_path: Path,
    swap: Swap,
    frames: Path,
    failing: RayExecutor,
    passing: RayExecutor,
    undisturbed: list[bytes],
    where: str,
) -> None:
    executor = passing if where == "ray" else None
    summary = swap("error", executor, policy=passing.policy)
    originals = pictures(frames)
    assert pictures(tmp_path / "out") == [
        originals[i] if i in MARKED else undisturbed[i] for i in range(FRAMES)
    ]
    why = f"segment 1, frame 2, swap: {POISONED} (2 attempts)"
    assert summary.passed_through == (why,)
    assert summary.frames_swapped == FRAMES - len(MARKED)
    assert len(summary.retried) == 1
    report = json.loads((tmp_path / "out.json").read_text())
    assert why in json.dumps(report["passed_through"], ensure_ascii=False)
    # Without --on-error passthrough it is tried again.
    mended(tmp_path)
    again = swap("error", failing if where == "ray" else None, name="again")
    assert (again.segments_resumed, again.passed_through) == (2, ())
    assert pictures(tmp_path / "again") == undisturbed


class Damage(Silent):
    """Cuts a file off when the analysis is over."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def start(self, stage: str, total: int, done: int = 0) -> None:
        if stage == "swap":
            self.file.write_bytes(self.file.read_bytes()[:1000])


@pytest.mark.parametrize("where", ["ray", "local"])
def test_a_frame_that_is_cut_off_meanwhile(
    tmp_path: Path,
    swap: Swap,
    frames: Path,
    failing: RayExecutor,
    passing: RayExecutor,
    undisturbed: list[bytes],
    where: str,
) -> None:
    whole = (frames / "003.png").read_bytes()
    executor = failing if where == "ray" else None
    with pytest.raises(InputError, match=r"^segment 1, frame 3, decode: .*003\.png.*\(2 attempts\)"):
        swap("", executor, Damage(frames / "003.png"), policy=failing.policy)
    assert not (tmp_path / "out").exists()
    (frames / "003.png").write_bytes(whole)
    executor = passing if where == "ray" else None
    summary = swap("", executor, Damage(frames / "003.png"), policy=passing.policy)
    (why,) = summary.passed_through
    assert why.startswith("segment 1, frame 3, decode: ")
    assert pictures(tmp_path / "out") == [
        (frames / f"{i:03d}.png").read_bytes() if i in MARKED else undisturbed[i] for i in range(FRAMES)
    ]


def test_a_frame_that_hangs_ends_its_worker(
    tmp_path: Path, swap: Swap, passing: RayExecutor, undisturbed: list[bytes]
) -> None:
    class Hang(Silent):
        def start(self, stage: str, total: int, done: int = 0) -> None:
            if stage == "swap":
                (tmp_path / "hang").mkdir()
                (tmp_path / "hang/004.png").touch()

    summary = swap("", passing, Hang())
    assert summary.retried == ("segment 2, frame 4, decode: took longer than --time-limit 12 s",)
    assert pictures(tmp_path / "out") == undisturbed


def test_a_full_memory_halves_the_batch(
    tmp_path: Path, swap: Swap, failing: RayExecutor, undisturbed: list[bytes]
) -> None:
    four = {"batch": 4, "segment_frames": 4, "keyframe_interval": 4}
    summary = swap("memory", failing, **four)
    assert len(summary.warnings) == summary.segments == 2, "one a segment"
    assert "the GPU's memory was too small for 4 crops at once; it took 2" in summary.warnings[0]
    assert (summary.retried, summary.frames_swapped) == ((), FRAMES)
    entries = [json.loads(f.read_text()) for f in sorted((tmp_path / "job/segments").glob("??????.json"))]
    assert [e["notes"]["micro_batch"] for e in entries] == [2, 2]
    assert pictures(tmp_path / "out") == undisturbed, "the crops' rows are those of a batch of 2"


def test_a_pack_that_a_machine_lacks_ends_the_job_at_once(
    tmp_path: Path, swap: Swap, pack: Pack, failing: RayExecutor
) -> None:
    class Gone(Silent):
        def start(self, stage: str, total: int, done: int = 0) -> None:
            if stage == "swap":
                (tmp_path / "pack").unlink()

    (tmp_path / "pack").symlink_to(pack.folder)
    # Another precision, as the workers keep the networks they have.
    with pytest.raises(PackError, match=r"^segment ., swap: .*pack") as caught:
        usual = resolve_dtype(load_settings("cpu").dtype, "cpu")
        other = "float32" if usual == "bfloat16" else "bfloat16"
        swap("", failing, Gone(), pack_folder=tmp_path / "pack", dtype=other)
    assert "attempts" not in str(caught.value), "trying again would not help"


def processes(name: str) -> list[int]:
    """The workers of this process's clusters that are called so."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (entry / "cmdline").read_bytes().startswith(name.encode()):
                raylet = parent(int(entry.name))
                found += [int(entry.name)] if parent(raylet) == os.getpid() else []
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


class AtFirst(Silent):
    """Does something when the first frames are swapped."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act

    def advance(self, stage: str, frames: int = 1) -> None:
        if stage == "swap" and self.act is not None:
            self.act()
            self.act = None


def test_the_feed_begins_anew_where_it_was(
    tmp_path: Path, swap: Swap, failing: RayExecutor, undisturbed: list[bytes]
) -> None:
    killed: list[int] = []

    def kill() -> None:
        for process in processes("ray::ReadFeed"):
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    for name in ("first", "second"):
        summary = swap("", failing, AtFirst(kill), name=name, job=f"{name}-job")
        assert pictures(tmp_path / name) == undisturbed
        assert (summary.retried, summary.frames_swapped) == ((), FRAMES)
    assert len(killed) >= 2


def test_a_broken_down_execution_is_an_error_and_leaves_nothing_on_the_cluster(
    tmp_path: Path, swap: Swap, cluster: Cluster, failing: RayExecutor, undisturbed: list[bytes]
) -> None:
    swap("", failing, name="warm", job="warm-job")
    free = ray.available_resources()["CPU"]
    executor = RayExecutor(RayOptions(workers=1), Policy(retries=0))
    with pytest.raises(JobError, match=r"^Ray gave up: ") as caught, executor:
        swap("", executor, AtFirst(lambda: ray.kill(executor.pool()._foreman)))
    assert "\n" not in str(caught.value)
    assert any("the same command goes on from there" in note for note in caught.value.__notes__)
    del caught  # its frames hold the pool
    until = time.monotonic() + 60
    while ray.available_resources()["CPU"] < free and time.monotonic() < until:
        gc.collect()
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] >= free
    summary = swap("", failing)
    assert summary.frames_swapped == FRAMES
    assert pictures(tmp_path / "out") == undisturbed


def test_a_machine_that_goes_away(
    tmp_path: Path, swap: Swap, cluster: Cluster, failing: RayExecutor, undisturbed: list[bytes]
) -> None:
    removed: list[str] = []

    def remove() -> None:
        until = time.monotonic() + 100
        while time.monotonic() < until and not removed:
            time.sleep(0.2)
            if (tmp_path / "node").exists():
                name = (tmp_path / "node").read_text()
                (node,) = (n for n in cluster.worker_nodes if n.node_id == name)
                cluster.remove_node(node, allow_graceful=False)
                removed.append(name)

    thread = threading.Thread(target=remove)
    thread.start()
    summary = swap("node", failing)
    thread.join()
    assert removed, "a machine was at work and is gone"
    assert pictures(tmp_path / "out") == undisturbed
    assert any(t.startswith("segment 1, swap: its worker died") for t in summary.retried)
    assert len(cluster.worker_nodes) == 1
    with pytest.raises(SettingsError, match="poisoned"):  # and the pool goes on for the next job
        swap("error", failing, name="next", job="next-job")
