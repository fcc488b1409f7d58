"""What Prometheus is shown of a job: told by the foreman, exported by Ray, scraped over HTTP."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ldvid.configs import load_settings
from ldvid.pipeline.cluster.foreman import Foreman
from ldvid.pipeline.cluster.metrics import Observer, RayMetrics
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.request import RayOptions, SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.stages.records import Segment

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "ldvid_frames_total": "counter",
    "ldvid_busy_seconds_total": "counter",
    "ldvid_segments_total": "counter",
    "ldvid_jobs_total": "counter",
    "ldvid_frames_left": "gauge",
    "ldvid_segments": "gauge",
    "ldvid_segments_running": "gauge",
    "ldvid_jobs": "gauge",
    "ldvid_swap_workers": "gauge",
}


class Recorder(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def began(self, job: str, name: str, frames: int) -> None:
        self.told.append(("began", job, name, frames))

    def frames(self, job: str, stage: str, frames: int) -> None:
        self.told.append(("frames", job, stage, frames))

    def busy(self, job: str, node: str, seconds: Any) -> None:
        self.told.append(("busy", job, node, dict(seconds)))

    def segment(self, job: str, state: str) -> None:
        self.told.append(("segment", job, state))

    def standing(self, job: str, waiting: int, running: Any, out: int) -> None:
        self.told.append(("standing", job, waiting, dict(running), out))

    def over(self, job: str, failed: bool) -> None:
        self.told.append(("over", job, failed))


def segments(count: int) -> list[Segment]:
    return [Segment(i, 4 * i, 4 * i + 4, 0) for i in range(count)]


def test_the_foreman_tells_what_happens() -> None:
    async def work() -> Recorder:
        recorder = Recorder()
        foreman = Foreman(1, Policy(retries=1, on_error="passthrough"), recorder)
        await foreman.add("k", None, segments(2), 0, "clip")
        first = await foreman.take(0)
        assert first is not None
        for stage, frames in (("load", 0), ("swap", 3)):
            assert await foreman.begin(first, stage)
            if frames:
                await foreman.progress(first, frames)
            await foreman.end(first, stage, f"{stage}-1", ("node", "cpu"), {stage: 0.5}, frames)
        await foreman.begin(first, "write")
        await foreman.done(first, 3)
        for number in (1, 2):
            ticket = await foreman.take(number)
            assert ticket is not None
            await foreman.begin(ticket, "load")
            await foreman.failed(ticket, "decode", None, "ValueError", "broken", False)
        await foreman.forget("k")
        return recorder

    told = asyncio.run(work()).told
    rest = [t for t in told if t[0] != "standing"]
    assert rest == [
        ("began", "k", "clip", 8),
        ("busy", "k", "node", {"load": 0.5}),
        ("frames", "k", "load", 4),
        ("frames", "k", "swap", 3),
        ("busy", "k", "node", {"swap": 0.5}),
        ("frames", "k", "write", 4),
        ("segment", "k", "done"),
        ("segment", "k", "retried"),
        ("segment", "k", "passed"),
        ("over", "k", False),
    ]
    standing = [t[2:] for t in told if t[0] == "standing"]
    assert standing[0] == (2, {}, 0)
    assert (1, {"swap": 1}, 1) in standing
    assert standing[-1] == (1, {}, 0)


class Figure:
    """A metric of Ray's that can be read."""

    def __init__(self) -> None:
        self.values: dict[frozenset[tuple[str, str]], float] = {}

    def inc(self, more: float, tags: dict[str, str]) -> None:
        key = frozenset(tags.items())
        self.values[key] = self.values.get(key, 0.0) + more

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values[frozenset((tags or {}).items())] = value

    def at(self, **tags: str) -> float:
        return self.values[frozenset(tags.items())]


@pytest.fixture
def figures() -> tuple[RayMetrics, dict[str, Figure]]:
    metrics, figures = RayMetrics(3), {name.removeprefix("ldvid_"): Figure() for name in NAMES}
    metrics._made = dict(figures)
    return metrics, figures


def test_jobs_of_one_name_are_added_up(figures: tuple[RayMetrics, dict[str, Figure]]) -> None:
    metrics, shown = figures
    for key in ("one", "two"):
        metrics.began(key, "clip", 10)
        metrics.standing(key, 3, {"swap": 1}, 2)
    metrics.frames("one", "write", 4)
    assert shown["frames_left"].at(ldvid_job="clip") == 16
    assert shown["segments"].at(ldvid_job="clip", state="waiting") == 6
    assert shown["segments_running"].at(ldvid_job="clip", stage="swap") == 2
    metrics.over("one", True)
    assert shown["frames_left"].at(ldvid_job="clip") == 10
    assert shown["jobs"].at(ldvid_job="clip") == 1
    metrics.frames("one", "write", 4)  # from a worker that was thought lost
    assert shown["frames_total"].at(ldvid_job="clip", stage="encode") == 4
    metrics.over("two", False)
    gauges = [shown[name] for name in ("frames_left", "segments", "segments_running", "jobs")]
    assert {value for gauge in gauges for value in gauge.values.values()} == {0}
    assert shown["jobs_total"].values == {
        frozenset({("ldvid_job", "clip"), ("state", s)}): 1 for s in ("done", "failed")
    }
    shown["frames_left"].values.clear()
    metrics.began("three", "other clip", 5)
    metrics._shown = 0.0
    metrics.alive()  # sets again what there is, and nothing that is over
    assert list(shown["frames_left"].values.values()) == [5]
    assert shown["swap_workers"].values == {frozenset(): 3}


def test_ten_thousand_jobs_are_not_ten_thousand_series(
    figures: tuple[RayMetrics, dict[str, Figure]],
) -> None:
    metrics, shown = figures
    for index in range(1000):
        metrics.began(str(index), f"clip-{index}", 2)
        metrics.frames(str(index), "write", 2)
        metrics.over(str(index), False)
    assert len(shown["frames_total"].values) == 101
    assert shown["frames_total"].at(ldvid_job="other", stage="encode") == 1800
    assert not metrics._sums


def scrape(ray: Any) -> dict[str, Any]:
    """Series of ldvid's → value, of the one node there is; types by name under ``types``."""
    from prometheus_client.parser import text_string_to_metric_families

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, Any] = {"types": {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("ray_")
            if name.startswith("ldvid_"):
                found["types"][name] = family.type
                tags = {
                    k: v
                    for k, v in sample.labels.items()
                    if k in ("ldvid_job", "stage", "state", "worker_node")
                }
                found[name, frozenset(tags.items())] = sample.value
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local cluster whose processes report every half second."""
    pytest.importorskip("prometheus_client", reason="Ray exports metrics with ray[default] only")
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_a_real_job_on_a_real_cluster_seen_by_prometheus(
    cluster: Any, tmp_path: Path, example_clip: Path, example_face: Path
) -> None:
    from ldvid.pipeline.cluster.executor import RayExecutor

    changes = ["steps=1", "segment_frames=3", "keyframe_interval=3", "batch=1", "start=target", "steady=0"]
    settings = load_settings("cpu", assignments=changes)
    request = SwapRequest(
        example_clip, example_face, settings, tmp_path / "out.mp4", end=11.5 / 12, threads=1, device="cpu"
    )
    seen: dict[str, Any] = {"types": {}}
    with RayExecutor(RayOptions(workers=1), Policy()) as executor:

        class Looking:
            """A listener that looks at the endpoint when the first frames are swapped."""

            def advance(self, stage: str, frames: int = 1) -> None:
                if stage == "swap" and frames and len(seen) == 1:
                    time.sleep(1.2)
                    seen.update(scrape(cluster))

            def __getattr__(self, name: str) -> Any:
                return lambda *values: None

        summary = swap_clip(request, Looking(), executor)  # type: ignore[arg-type]
        time.sleep(1.2)
        end = scrape(cluster)
    assert (summary.segments, summary.frames_swapped) == (4, 12)
    assert seen["types"] | end["types"] == NAMES

    def value(name: str, found: dict[str, Any] = end, **tags: str) -> float:
        series = (f"ldvid_{name}", frozenset({"ldvid_job": "out.mp4", **tags}.items()))
        return float(found[series])

    for stage in ("decode", "swap", "encode"):
        assert value("frames_total", stage=stage) == 12
    assert value("segments_total", state="done") == 4
    assert value("jobs_total", state="done") == 1
    (node,) = cluster.nodes()
    for stage in ("decode", "align", "mask", "swap", "paste", "encode", "ledger"):
        took = value("busy_seconds_total", stage=stage, worker_node=node["NodeManagerAddress"])
        assert took == pytest.approx(summary.seconds[stage], rel=0.2, abs=0.02)
    assert seen["ldvid_swap_workers", frozenset()] == 1
    assert value("jobs", seen) == 1
    assert 0 < value("frames_left", seen) <= 12
    assert 1 <= value("segments", seen, state="out") <= 4
    assert value("segments", seen, state="waiting") == 0  # six may be out


def test_every_metric_is_documented_and_every_query_asks_for_one() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    dashboard = (ROOT / "examples/cluster/grafana.json").read_text(encoding="utf-8")
    shown = {f"ray_{name}" for name in NAMES}
    for name in shown:
        assert f"| `{name}` |" in page, name
    for text in (page, dashboard):
        asked = set(re.findall(r"ray_ldvid_\w+", text))
        assert asked <= shown, asked - shown
    assert set(re.findall(r"ray_ldvid_\w+", dashboard)) == shown
