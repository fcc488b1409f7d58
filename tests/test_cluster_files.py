"""The files of examples/cluster and the commands in docs/cluster.md, against what reads them."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ldvid import __version__
from ldvid.cli import app

ray = pytest.importorskip("ray")
yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "examples/cluster"
# KubeRay's v1 API: what a RayJob, its cluster and their groups may say.
JOB = {
    "activeDeadlineSeconds", "authOptions", "backoffLimit", "clusterSelector", "entrypoint", "jobId",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "managedBy", "metadata",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "rayVersion",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "suspend", "workerGroupSpecs",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "scaleStrategy", "suspend", "template",
}  # fmt: skip


def parse(command: str) -> dict[str, Any]:
    """A command line as ``ldvid`` reads it: the parameters by name.

    Raises:
        click.UsageError: there is no such command or flag, or a value that it does not take.
    """
    words = shlex.split(command)
    assert words.pop(0).rpartition("/")[2] == "ldvid", command
    group: Any = typer.main.get_command(app)
    while words and hasattr(group, "commands"):
        assert words[0] in group.commands, command
        group = group.commands[words.pop(0)]
    return dict(group.make_context("ldvid", words).params)


def commands_in(text: str) -> list[str]:
    """The ldvid commands of a page or of a file's comments, each in one line."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\n#\s{4,}", " ", text)  # a comment's next line, indented
    quoted = re.findall(r"'((?:[A-Z_]+=\S+ )*(?:/\S+/)?ldvid (?:swap|batch|packs|jobs)[^']*)'", text)
    plain = re.findall(r"^ {4,}(?:\S*[$>] )?((?:/\S+/)?ldvid (?:swap|batch|packs|jobs) .*)$", text, re.M)
    plain += re.findall(r"-- (ldvid .*)$", text, re.M)
    return [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", c.split("  #")[0].strip()) for c in quoted + plain]


def launched(name: str) -> dict[str, Any]:
    """A cluster file as ``ray up`` reads it, with the provider's defaults, validated by Ray."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_up_on_aws() -> None:
    config = launched("ray-up.yaml")
    head, gpu = (config["available_node_types"][n] for n in ("head", "gpu"))
    assert config["provider"]["type"] == "aws"
    assert head["resources"] == {"CPU": 8}, "the driver's analysis needs CPUs, but no GPU"
    assert gpu["resources"] == {"CPU": 8, "GPU": 1}
    assert gpu["min_workers"] == gpu["max_workers"] == config["max_workers"] == 4
    assert "RAY_AUTH_MODE=token" in " ".join(config["docker"]["run_options"])
    (command,) = commands_in((HERE / "ray-up.yaml").read_text())
    given = parse(command)
    assert (given["executor"], given["ray_address"]) == ("ray", "auto")
    assert given["gpus"] == gpu["max_workers"] * gpu["resources"]["GPU"]


def test_ray_up_on_machines_that_are_there() -> None:
    config = launched("ray-up-local.yaml")
    (node,) = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"]) == 2
    (command,) = commands_in((HERE / "ray-up-local.yaml").read_text())
    given = parse(command)
    assert (given["executor"], given["ray_address"]) == ("ray", "auto")
    places = [*given["source"], *(given[what] for what in ("clip", "output", "job"))]
    assert len(places) == 4 and all(place.startswith("/shared/") for place in places)


@pytest.mark.parametrize("name", ["ray-up.yaml", "ray-up-local.yaml"])
def test_all_machines_know_the_token_and_show_their_metrics(name: str) -> None:
    config = launched(name)
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])
    starts = [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    shared = "RAY_AUTH_MODE=token" in str(config.get("docker"))
    for start in starts:
        assert "--metrics-export-port=8080" in start
        assert shared or "RAY_AUTH_MODE=token" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts[0]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--address=$RAY_HEAD_IP:6379" in starts[1]
    assert "--port=6379" in starts[0]


def test_a_spelling_mistake_is_seen() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((HERE / "ray-up.yaml").read_text())
    config["available_node_types"]["gpu"]["min_worker"] = 4
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config(config))


def amounts(container: dict[str, Any]) -> dict[str, str]:
    resources: dict[str, dict[str, str]] = container["resources"]
    assert resources["requests"] == resources["limits"], "Ray believes the limits"
    return resources["limits"]


def test_kuberay() -> None:
    (job,) = yaml.safe_load_all((HERE / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec.keys() <= JOB
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() <= CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head.keys() <= HEAD
    assert {"rayStartParams", "template"} <= head.keys()
    assert workers.keys() <= WORKERS
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    (on_head,), (on_worker,) = (g["template"]["spec"]["containers"] for g in (head, workers))
    assert on_head["image"] == on_worker["image"], "one version of ldvid and Ray everywhere"
    assert on_head["image"].endswith(f":{__version__}")
    assert on_head["envFrom"] == on_worker["envFrom"]
    assert on_head["env"] == on_worker["env"]
    for container in (on_head, on_worker):
        assert {"containerPort": 8080, "name": "metrics"} in container["ports"]
        assert all(isinstance(v, str) for v in amounts(container).values())
    assert "nvidia.com/gpu" not in amounts(on_head)
    assert int(amounts(on_worker)["cpu"]) >= 2, "a worker that swaps takes one, decoding another"
    given = parse(spec["entrypoint"])
    assert given["executor"] == "ray"
    assert given["ray_address"] is None, "a submitted job is told by RAY_ADDRESS"
    assert given["gpus"] == workers["replicas"] * int(amounts(on_worker)["nvidia.com/gpu"])
    assert given["job"].startswith("s3://"), "the next cluster goes on where this one stopped"
    assert not re.search(r"[&|;<>$]", spec["entrypoint"]), "the submitter's shell would take it for its own"


def test_versions_agree() -> None:
    docker = (HERE / "Dockerfile").read_text()
    (version,) = re.findall(r"^ARG RAY=(\S+)$", docker, re.M)
    job = yaml.safe_load((HERE / "kuberay.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert f"ray[data,default]=={version}" in (HERE / "ray-up-local.yaml").read_text()
    for name in ("Dockerfile", "kuberay.yaml", "ray-up.yaml"):
        assert set(re.findall(r"example\.com/ldvid:([\d.]+)", (HERE / name).read_text())) == {__version__}, (
            name
        )
    assert f"ldvid[ray]=={__version__}" in (HERE / "ray-up-local.yaml").read_text()


def test_prometheus_and_grafana() -> None:
    monitor = yaml.safe_load((HERE / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    assert monitor["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    (scrape,) = yaml.safe_load((HERE / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    board = json.loads((HERE / "grafana.json").read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        for query in (target["expr"] for target in panel["targets"]):
            assert all(query.count(a) == query.count(b) for a, b in ("()", "{}", "[]")), query
            for variable in re.findall(r"\$(\w+)", query):
                assert variable in {"job", "__range", "__rate_interval"}, query


def test_the_pages_commands_are_commands() -> None:
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    commands = commands_in(text)
    assert len(commands) >= 3
    for command in commands:
        parse(command)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / "docs" / link).exists(), link
    for flag in set(re.findall(r"`(--[a-z-]+)", text)):
        known = (ROOT / "commands/options.py").read_text() + "".join(
            (ROOT / f"commands/{name}.py").read_text() for name in ("swap", "batch", "packs")
        )
        assert flag.removeprefix("--").replace("-", "_") in known or flag in known or flag in RAYS, flag


RAYS = {"--address", "--head", "--num-cpus", "--num-gpus", "--metrics-export-port", "--dashboard-host"}
