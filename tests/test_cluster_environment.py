"""``--ray-runtime-env`` and what a driver passes on: read, refused, arriving in the workers of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ldvid.cli import main
from ldvid.errors import SettingsError
from ldvid.pipeline.request import RayOptions

ray = pytest.importorskip("ray")
from ldvid.pipeline.cluster.connect import connected  # noqa: E402 - needs Ray
from ldvid.pipeline.cluster.environment import passed_on, read_runtime_env  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_yaml_json_and_text_are_read_alike(tmp_path: Path) -> None:
    wanted = {"env_vars": {"LDVID_HOME": "/nvme/ldvid"}, "pip": ["ldvid[ray,s3]"]}
    yaml, json = tmp_path / "env.yaml", tmp_path / "env.json"
    yaml.write_text("env_vars:\n  LDVID_HOME: /nvme/ldvid\npip: ['ldvid[ray,s3]']\n")
    text = '{"env_vars": {"LDVID_HOME": "/nvme/ldvid"}, "pip": ["ldvid[ray,s3]"]}'
    json.write_text(text)
    assert read_runtime_env(str(yaml)) == read_runtime_env(str(json)) == read_runtime_env(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{no json", "--ray-runtime-env: neither YAML nor JSON"),
        ("a: [", r"env.yaml: neither YAML nor JSON"),
        ("- env_vars", r"env.yaml: a mapping is expected"),
        ("", r"env.yaml: a mapping is expected"),
        ("env_var: {A: b}", r"env.yaml: no field is called env_var; there are .*env_vars"),
        ("env_vars: {LDVID_CACHE_LIMIT: 5}", r"env.yaml: .*Dict\[str, str\]"),
        ("{pip: [a], conda: b}", r"--ray-runtime-env: neither"),
        ("pip: [a]\nconda: b", r"env.yaml: .*cannot be specified at the same time"),
        (None, r"env.yaml: can't be read: No such file"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "env.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=says):
        read_runtime_env(text if text is not None and text.startswith("{") else str(file))


def test_endpoints_are_passed_on_but_no_secrets_and_no_folders() -> None:
    environ = {
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HF_TOKEN": "secret",
        "LDVID_HOME": "/home/me/ldvid",
        "HF_ENDPOINT": "https://me:secret@mirror",
        "LDVID_MIRROR": "https://github.com/=https://me:secret@mirror/",
        "AWS_REGION": "eu-west-1",
    }
    passed = {"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_REGION": "eu-west-1"}
    assert passed_on({}, environ) == passed
    assert passed_on({"env_vars": {"AWS_REGION": "x"}}, environ) == {"AWS_ENDPOINT_URL": "http://minio:9000"}
    environ["LDVID_MIRROR"] = "https://github.com/=https://mirror/"
    assert passed_on({}, environ) == {**passed, "LDVID_MIRROR": environ["LDVID_MIRROR"]}
    assert passed_on({}, {**environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}) == {}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name in ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "HF_ENDPOINT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_variables_arrive_in_the_workers_of_a_cluster_that_was_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("AWS_ENDPOINT_URL", "HF_ENDPOINT", "LDVID_CACHE_LIMIT", "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://driver:9000")
    monkeypatch.setenv("HF_ENDPOINT", "http://driver/hub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    given = '{"env_vars": {"LDVID_CACHE_LIMIT": "7GB", "HF_ENDPOINT": "http://file/hub"}}'
    options = RayOptions(address=cluster.address, runtime_env=given, workers=1, dashboard=True)
    with connected(options, "cpu", 1) as size:
        there = ray.get(ray.remote(lambda: {n: os.environ.get(n) for n in names}).remote())
    assert there == {
        "AWS_ENDPOINT_URL": "http://driver:9000",
        "HF_ENDPOINT": "http://file/hub",
        "LDVID_CACHE_LIMIT": "7GB",
        "AWS_SECRET_ACCESS_KEY": None,
    }
    passed, dashboard = size.notes
    assert passed == "the workers are given this machine's AWS_ENDPOINT_URL"
    assert "dashboard" in dashboard


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ray-dashboard"], "--ray-dashboard: only with --executor ray"),
        (["--ray-runtime-env", "{}"], "--ray-runtime-env: only with --executor ray"),
        (
            ["--executor", "ray", "--ray-runtime-env", "none.yaml"],
            "--ray-runtime-env none.yaml: can't be read",
        ),
    ],
)
def test_the_commands_flags(
    flags: list[str],
    says: str,
    example_clip: Path,
    example_face: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["swap", str(example_clip), "-s", str(example_face), "-o", "out.mp4", *flags]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
