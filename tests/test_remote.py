"""A swap whose clip, source, output and job lie on a store: a real S3-compatible server, the real command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from ldvid.cli import main
from ldvid.errors import OutputExistsError
from ldvid.pipeline.remote import Errand, destination, errand

server = pytest.importorskip("moto.server", reason="needs a local S3 server: pip install 'moto[server]'")
boto3 = pytest.importorskip("boto3")

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--end", "0.5", "--set", "steps=1", "--set", "segment_frames=2", "--set", "keyframe_interval=2",
    "--set", "steady=0.4",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """Environment of a command that speaks to the server, and ldvid's cache folder for it."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    home = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*running.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "LDVID_HOME": str(home),
    }
    try:
        yield environment, home
    finally:
        running.stop()


def bucket(environment: dict[str, str]) -> object:
    """The server's own view of the bucket, by another client than ours."""
    client = boto3.resource(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
    )
    return client.Bucket("films")


def errand_to(key: str, environment: dict[str, str]) -> Errand:
    """What the command does first, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        clip, face = (str(ROOT / "examples" / n) for n in ("clip.mp4", "face.png"))
        return errand(clip, face, f"s3://films/{key}", None, overwrite=False, restart=False)


def ldvid(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ldvid", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_report_of_an_output_at_a_url_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "home"))
    store = fsspec.filesystem("memory")
    store.pipe("/films/job/job.json", b"{}")
    clip, face = (str(ROOT / "examples" / n) for n in ("clip.mp4", "face.png"))
    for given in ((clip, "-o", "memory://films/o.mp4"), ("memory://films/none.mp4",)):
        code = main(["swap", *given, "-s", face, "--job", "memory://films/job", "--restart", "--report"])
        assert code == 2 and "the output goes to a URL" in capsys.readouterr().err
    assert store.exists("/films/job/job.json") and not (tmp_path / "home").exists()
    assert destination("memory://films/a.mp4", None) == "memory://films/a.swapped.mp4"
    assert destination("memory://films/a.mp4", "b.mp4") is destination("a.mp4", None) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_swap_from_and_to_a_store(store: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    environment, home = store
    films = bucket(environment)
    films.create()  # type: ignore[attr-defined]
    for name in ("clip.mp4", "face.png"):
        films.upload_file(str(ROOT / "examples" / name), f"in/{name}")  # type: ignore[attr-defined]

    def keys(prefix: str = "") -> list[str]:
        return sorted(o.key for o in films.objects.filter(Prefix=prefix))  # type: ignore[attr-defined]

    here = tmp_path / "here.mp4"
    local = ldvid(
        environment, "swap", "examples/clip.mp4", "-s", "examples/face.png", "-o", str(here), *SMALL, "-q"
    )
    assert local.returncode == 0, local.stderr
    swap = (
        "swap",
        "s3://films/in/clip.mp4",
        "-s",
        "s3://films/in/face.png",
        "--job",
        "s3://films/job",
        *SMALL,
    )
    first = ldvid(environment, *swap, "--json", "-q")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary["output"] == "s3://films/in/clip.swapped.mp4" and summary["segments_resumed"] == 0
    made = films.Object("in/clip.swapped.mp4").get()["Body"].read()  # type: ignore[attr-defined]
    assert made == here.read_bytes(), "the same bytes wherever things lie"
    record = json.loads(films.Object("in/clip.swapped.mp4.json").get()["Body"].read())  # type: ignore[attr-defined]
    assert record["output"] == {"name": "clip.swapped.mp4", "sha256": hashlib.sha256(made).hexdigest()}
    segments = [f"job/segments/{i:06d}{suffix}" for i in range(3) for suffix in (".json", ".mkv")]
    assert keys("job/") == ["job/job.json", "job/plan.json", *segments]
    assert not list((home / "outputs").glob("*")), "nothing of the output stays in the cache"

    refused = ldvid(environment, *swap, "-q")
    assert refused.returncode == 5 and "s3://films/in/clip.swapped.mp4 exists" in refused.stderr

    # Another machine, another cache; of the three segments one is lost on the store.
    films.Object("job/segments/000001.mkv").delete()  # type: ignore[attr-defined]
    films.Object("job/segments/000001.json").delete()  # type: ignore[attr-defined]
    elsewhere = environment | {"LDVID_HOME": str(tmp_path / "elsewhere")}
    again = ldvid(elsewhere, *swap, "-o", "s3://films/out/b.mp4", "--json", "-q")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["segments_resumed"] == 2
    assert films.Object("out/b.mp4").get()["Body"].read() == made  # type: ignore[attr-defined]

    # A run that was stopped between record and output may be given again; a stranger's file stays.
    films.Object("out/b.mp4").delete()  # type: ignore[attr-defined]
    assert errand_to("out/b.mp4", environment).output is not None
    films.Object("out/c.mp4.json").put(Body=b"{}")  # type: ignore[attr-defined]
    with pytest.raises(OutputExistsError, match=r"s3://films/out/c\.mp4\.json exists"):
        errand_to("out/c.mp4", environment)

    missing = ldvid(environment, "swap", "s3://films/no.mp4", "-s", "s3://films/in/face.png", "-q")
    assert missing.returncode == 3 and "s3://films/no.mp4" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
