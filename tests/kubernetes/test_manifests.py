"""deploy/kubernetes: what a cluster accepts, that pods are closed as far as they can be, and that all ends meet."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from manifests import DIRECTORY, Document, container, containers, documents, find, read, rendered, resources, workloads
from typer.testing import CliRunner

from p2pdist.config import AgentConfig, load_agent
from tracker.__main__ import cli as tracker_cli
from tracker.config import TrackerSettings
from tracker.config import load as load_tracker
from tracker.enrol_kubernetes import KubernetesSettings

MONITORING = DIRECTORY / "monitoring"
VERSIONS = ["1.30", "1.33", "1.37"]  # the oldest whose tokens carry the node's name, one between, the newest
OURS = [pytest.param(one, id=name) for workload in workloads() for name, one in containers(workload)]
PODS = [pytest.param(one, id=one["metadata"]["name"]) for one in workloads()]

# The part of the Prometheus operator's CRDs (monitoring.coreos.com/v1) that is used here; nothing else may be said.
_ENDPOINT = {
    "type": "object",
    "properties": {"port": {"type": "string"}, "path": {"type": "string"}, "interval": {"pattern": "^[0-9]+(s|m|h)$"}},
    "required": ["port"],
    "additionalProperties": False,
}
_SELECTOR = {
    "type": "object",
    "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}},
    "required": ["matchLabels"],
    "additionalProperties": False,
}
ENDPOINTS = {"ServiceMonitor": "endpoints", "PodMonitor": "podMetricsEndpoints"}


def monitor_schema(kind: str) -> dict[str, Any]:
    endpoints = {"type": "array", "items": _ENDPOINT, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "apiVersion": {"const": "monitoring.coreos.com/v1"},
            "kind": {"const": kind},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "properties": {"selector": _SELECTOR, ENDPOINTS[kind]: endpoints},
                "required": ["selector", ENDPOINTS[kind]],
                "additionalProperties": False,
            },
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }


# Of a PrometheusRule: what Prometheus' own rules files have, and nothing that they haven't.
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_ALARM = {
    "type": "object",
    "properties": {
        "alert": {"type": "string"},
        "expr": {"type": "string"},
        "for": {"pattern": "^([0-9]+(s|m|h|d))+$"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "required": ["alert", "expr"],
    "additionalProperties": False,
}
_GROUP = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "rules": {"type": "array", "items": _ALARM, "minItems": 1}},
    "required": ["name", "rules"],
    "additionalProperties": False,
}
RULES_SCHEMA = {
    "type": "object",
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PrometheusRule"},
        "metadata": {"type": "object", "required": ["name", "namespace"]},
        "spec": {
            "type": "object",
            "properties": {"groups": {"type": "array", "items": _GROUP, "minItems": 1}},
            "required": ["groups"],
            "additionalProperties": False,
        },
    },
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
}


# --- what a cluster accepts ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("one", [pytest.param(one, id=f"{one['kind']}-{one['metadata']['name']}") for one in read()])
def test_every_object_is_what_the_published_schemas_say(one: Document, version: str) -> None:
    kubernetes_validate.validate(one, version, strict=True)


def test_the_validator_finds_a_key_that_is_spelled_wrongly() -> None:
    wrong = json.loads(json.dumps(find("Deployment", "p2pdist-tracker")))
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readonlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_kustomize_renders_every_object_with_the_image_that_was_configured() -> None:
    (kustomization,) = documents(DIRECTORY / "kustomization.yaml")
    (image,) = kustomization["images"]
    wanted = f"{image['newName']}:{image['newTag']}"
    objects = rendered()
    for one in objects:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    assert {(one["kind"], one["metadata"]["name"]) for one in objects} == {
        (one["kind"], one["metadata"]["name"]) for one in read()
    }
    images = {
        each["image"] for one in objects if one["kind"] in {"Deployment", "DaemonSet"} for _, each in containers(one)
    }
    assert images == {wanted}


def test_every_file_belongs_to_a_kustomization() -> None:
    named = {*resources(DIRECTORY), *resources(MONITORING)}
    assert {path for path in DIRECTORY.rglob("*.yaml") if path.name != "kustomization.yaml"} == named


def test_monitors_are_what_the_operator_takes_and_find_the_metrics() -> None:
    monitors = [one for one in rendered(MONITORING) if one["kind"] != "PrometheusRule"]
    assert {one["kind"] for one in monitors} == set(ENDPOINTS)
    for one in monitors:
        jsonschema.validate(one, monitor_schema(one["kind"]))
        (endpoint,) = one["spec"][ENDPOINTS[one["kind"]]]
        wanted = one["spec"]["selector"]["matchLabels"]
        if one["kind"] == "ServiceMonitor":
            (service,) = [each for each in read() if each["kind"] == "Service" and within(wanted, each)]
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        else:
            (workload,) = [each for each in workloads() if within(wanted, each["spec"]["template"])]
            assert endpoint["port"] in ports(workload)


def test_the_operator_gets_every_alarm_that_a_rules_file_has() -> None:
    (rule,) = [one for one in rendered(MONITORING) if one["kind"] == "PrometheusRule"]
    jsonschema.validate(rule, RULES_SCHEMA)
    (alarms,) = documents(DIRECTORY.parent / "alerts.yaml")
    assert rule["spec"] == alarms, "deploy/kubernetes/monitoring/rules.yaml has to say what deploy/alerts.yaml says"


# --- pods are closed ---


@pytest.mark.parametrize("one", OURS)
def test_no_container_can_write_to_its_root_or_gain_rights(one: Document) -> None:
    context = one["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    assert "privileged" not in context
    assert context["capabilities"].get("add", []) == (["CHOWN"] if one["name"] == "directory" else [])
    assert one["resources"]["requests"]


@pytest.mark.parametrize("one", PODS)
def test_what_runs_for_long_is_not_root_and_has_the_default_seccomp_profile(one: Document) -> None:
    pod = one["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in pod["containers"]:
        settings = pod["securityContext"] | each["securityContext"]
        assert settings["runAsNonRoot"] is True
        assert settings["runAsUser"] > 0
    assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & set(pod)
    assert pod["enableServiceLinks"] is False


def test_only_agents_touch_the_host_and_only_two_directories_of_it() -> None:
    touched = {
        one["metadata"]["name"]: [volume["hostPath"]["path"] for volume in volumes(one) if "hostPath" in volume]
        for one in workloads()
    }
    assert touched == {
        "p2pdist-tracker": [],
        "p2pdist-redis": [],
        "p2pdist-agent": ["/var/lib/p2pdist", "/etc/containerd/certs.d"],
    }
    network = [one["metadata"]["name"] for one in workloads() if one["spec"]["template"]["spec"].get("hostNetwork")]
    assert network == ["p2pdist-agent"]
    mounts = {each["name"] for each in container("DaemonSet", "p2pdist-agent", "agent")["volumeMounts"]}
    assert "containerd" not in mounts, "the running agent can't change the daemon's configuration"


def test_agents_see_the_authoritys_certificate_and_never_its_key() -> None:
    (volume,) = [one for one in volumes(find("DaemonSet", "p2pdist-agent")) if "secret" in one]
    assert volume["secret"]["items"] == [{"key": "tls.crt", "path": "ca.crt"}]


def test_trackers_may_ask_about_tokens_and_nothing_else_and_nobody_else_may_ask_anything() -> None:
    (role,) = [one for one in read() if one["kind"] in {"Role", "ClusterRole"}]
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    (binding,) = [one for one in read() if one["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "p2pdist-tracker", "namespace": "p2pdist"}]
    with_token = [one for one in workloads() if one["spec"]["template"]["spec"]["automountServiceAccountToken"]]
    assert [one["metadata"]["name"] for one in with_token] == ["p2pdist-tracker"]


def test_network_policies_close_everything_but_what_the_configuration_needs() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in read() if one["kind"] == "NetworkPolicy"}
    for spec in policies.values():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert policies.pop("p2pdist-default")["podSelector"] == {}
    settings = tracker_settings()
    tracker, redis = policies["p2pdist-tracker"], policies["p2pdist-redis"]
    assert [rule["ports"] for rule in tracker["ingress"]] == [
        [{"port": settings.port}],
        [{"port": settings.metrics_port}],
    ]
    assert "from" in tracker["ingress"][1], "metrics are not for everybody"
    (rule,) = redis["ingress"]
    assert rule["from"] == [{"podSelector": tracker["podSelector"]}]
    assert rule["ports"] == [{"port": 6379}]
    assert "egress" not in redis
    for name in ("p2pdist-tracker", "p2pdist-redis"):
        (target,) = [one for one in workloads() if one["metadata"]["name"] == name]
        assert within(policies[name]["podSelector"]["matchLabels"], target["spec"]["template"])


# --- all ends meet ---


def test_selectors_select_their_own_pods_and_no_others() -> None:
    for one in workloads():
        found = [
            each for each in workloads() if within(one["spec"]["selector"]["matchLabels"], each["spec"]["template"])
        ]
        assert found == [one]
    for kind, name, target in [
        ("Service", "p2pdist-tracker", "p2pdist-tracker"),
        ("Service", "p2pdist-tracker-replicas", "p2pdist-tracker"),
        ("Service", "p2pdist-redis", "p2pdist-redis"),
        ("PodDisruptionBudget", "p2pdist-tracker", "p2pdist-tracker"),
    ]:
        selector = find(kind, name)["spec"]["selector"]
        found = [
            each for each in workloads() if within(selector.get("matchLabels", selector), each["spec"]["template"])
        ]
        assert [each["metadata"]["name"] for each in found] == [target]


def test_services_lead_to_ports_that_the_pods_have() -> None:
    for one in read():
        if one["kind"] == "Service":
            (workload,) = [each for each in workloads() if within(one["spec"]["selector"], each["spec"]["template"])]
            known = ports(workload)
            for port in one["spec"]["ports"]:
                assert known[port["targetPort"]] == port["port"]


def test_one_replica_may_go_and_one_must_stay() -> None:
    tracker = find("Deployment", "p2pdist-tracker")
    assert tracker["spec"]["replicas"] > find("PodDisruptionBudget", "p2pdist-tracker")["spec"]["minAvailable"] >= 1
    assert tracker["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert find("Service", "p2pdist-tracker-replicas")["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("workload", PODS)
def test_everything_that_is_mounted_or_read_is_there(workload: Document) -> None:
    known = {volume["name"] for volume in volumes(workload)}
    known |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    configs = {volume["name"]: volume["configMap"]["name"] for volume in volumes(workload) if "configMap" in volume}
    for _, one in containers(workload):
        assert {mount["name"] for mount in one["volumeMounts"]} <= known
        for path in re.findall(r"/etc/p2pdist/config/(\S+)", " ".join(one["command"])):
            assert path in find("ConfigMap", configs["config"])["data"]
    readme = (DIRECTORY / "README.md").read_text()
    for volume in volumes(workload):
        if "secret" in volume:
            assert re.search(rf"create secret \w+ {volume['secret']['secretName']}", readme), "how is it made?"


def test_the_trackers_configuration_is_what_trackers_read_and_its_ports_are_the_pods() -> None:
    settings = tracker_settings()
    one = container("Deployment", "p2pdist-tracker", "tracker")
    known = ports(find("Deployment", "p2pdist-tracker"))
    assert known == {"tracker": settings.port, "metrics": settings.metrics_port}
    assert settings.port == TrackerSettings().port
    assert settings.host == "0.0.0.0"
    assert not settings.insecure
    mounted = {mount["mountPath"] for mount in one["volumeMounts"]}
    assert {settings.authority_directory, str(Path(settings.state.password_file).parent)} <= mounted
    assert settings.state.url == f"redis://p2pdist-redis:{ports(find('StatefulSet', 'p2pdist-redis'))['redis']}"
    assert settings.state.address == "10.1.2.3", "the pod's own"


def test_the_agents_configuration_is_what_agents_read_and_its_ports_are_the_pods() -> None:
    config = agent_config()
    assert ports(find("DaemonSet", "p2pdist-agent")) == {"peer": config.peer.port, "metrics": config.admin.metrics_port}
    assert (config.mirror.port, config.peer.port) == (AgentConfig().mirror.port, AgentConfig().peer.port)
    assert config.mirror.host == "127.0.0.1"
    assert config.node.name == "worker-7"
    assert config.peer.advertise_host == "10.0.0.7"
    (url,) = config.tracker.urls
    assert url == f"https://p2pdist-tracker-replicas.p2pdist.svc:{tracker_settings().port}"


def test_the_projected_token_is_what_the_tracker_wants_and_where_the_agent_looks() -> None:
    settings, config = tracker_settings(), agent_config()
    agent = find("DaemonSet", "p2pdist-agent")
    (volume,) = [one for one in volumes(agent) if "projected" in one]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == settings.kubernetes.audience == KubernetesSettings().audience
    mounts = {one["name"]: one["mountPath"] for one in container("DaemonSet", "p2pdist-agent", "agent")["volumeMounts"]}
    assert config.cluster.kubernetes_token_file == Path(mounts["token"]) / source["serviceAccountToken"]["path"]
    assert config.cluster.authority_file == Path(mounts["authority"]) / "ca.crt"
    account = agent["spec"]["template"]["spec"]["serviceAccountName"]
    assert settings.kubernetes.service_accounts == f"{agent['metadata']['namespace']}/{account}"
    assert find("ServiceAccount", account)


def test_the_zone_is_read_from_the_pods_own_labels() -> None:
    (volume,) = [one for one in volumes(find("DaemonSet", "p2pdist-agent")) if "downwardAPI" in one]
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"] == {"fieldPath": "metadata.labels"}
    one = container("DaemonSet", "p2pdist-agent", "agent")
    (mount,) = [each["mountPath"] for each in one["volumeMounts"] if each["name"] == volume["name"]]
    assert environment(one)["P2PDIST_NODE_LABELS_FILE"] == f"{mount}/{item['path']}"
    assert agent_config().node.label_map["zone"] == "eu-1a"


def test_probes_ask_pages_that_are_open_at_the_ports_that_are_configured() -> None:
    one = container("Deployment", "p2pdist-tracker", "tracker")
    for probe, path in [("readinessProbe", "/healthz"), ("livenessProbe", "/v1/authority")]:
        assert one[probe]["httpGet"] == {"path": path, "port": "tracker", "scheme": "HTTPS"}
    agent = container("DaemonSet", "p2pdist-agent", "agent")
    for probe in ("readinessProbe", "livenessProbe"):
        config = agent_config()
        assert agent[probe]["httpGet"] == {"host": config.mirror.host, "path": "/v2/", "port": config.mirror.port}


def test_pods_get_the_time_to_stop_that_the_programs_allow_themselves() -> None:
    pod = find("DaemonSet", "p2pdist-agent")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > agent_config().node.shutdown_seconds + 5


def test_the_init_container_has_containerd_ask_the_mirror_of_the_config_map(tmp_path: Path) -> None:
    one = container("DaemonSet", "p2pdist-agent", "containerd")
    (tmp_path / "agent.toml").write_text(find("ConfigMap", "p2pdist-agent")["data"]["agent.toml"])
    (mount,) = [each["mountPath"] for each in one["volumeMounts"] if each["name"] == "containerd"]
    root = tmp_path / "host"
    (tmp_path / mount.lstrip("/")).mkdir(parents=True)
    said = [word.replace("/etc/p2pdist/config", str(tmp_path)).replace("/host", str(root)) for word in one["command"]]
    subprocess.run([str(Path(sys.executable).parent / said[0]), *said[1:]], check=True, env={"PATH": "/usr/bin:/bin"})
    written = root / "etc/containerd/certs.d/_default/hosts.toml"
    assert list(tomllib.loads(written.read_text())["host"]) == [f"http://127.0.0.1:{agent_config().mirror.port}"]
    assert stat.S_IMODE(written.stat().st_mode) == 0o644
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "agent.toml", written]


def test_the_readmes_command_makes_the_two_files_of_the_authoritys_secret(tmp_path: Path) -> None:
    readme = (DIRECTORY / "README.md").read_text()
    (command,) = re.findall(r"p2pdist-tracker (token create --data) \./(\S+) >/dev/null", readme)
    done = CliRunner().invoke(tracker_cli, [*command[0].split(), str(tmp_path / command[1])])
    assert done.exit_code == 0, done.output
    for key, name in [("cert", "tls.crt"), ("key", "tls.key")]:
        (path,) = re.findall(rf"--{key}=(\S+)", readme)
        assert path.endswith(name)
        assert (tmp_path / path).is_file()


def test_the_programs_are_those_of_the_image() -> None:
    scripts = tomllib.loads((DIRECTORY.parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    for one in workloads():
        for name, each in containers(one):
            if each["image"] == "p2pdist":
                assert each["command"][0] in {*scripts, "python3"}, name


# ---


def within(wanted: Mapping[str, str], one: Document) -> bool:
    return wanted.items() <= one["metadata"]["labels"].items()


def volumes(workload: Document) -> list[Document]:
    found: list[Document] = workload["spec"]["template"]["spec"]["volumes"]
    return found


def ports(workload: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for _, one in containers(workload) for port in one.get("ports", [])}


def environment(one: Document) -> dict[str, str]:
    """As the kubelet would set it on one node."""
    told = {"status.podIP": "10.1.2.3", "status.hostIP": "10.0.0.7", "spec.nodeName": "worker-7"}
    return {
        each["name"]: each["value"] if "value" in each else told[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in one.get("env", [])
    }


def tracker_settings() -> TrackerSettings:
    told = environment(container("Deployment", "p2pdist-tracker", "tracker"))
    with config_file("p2pdist-tracker", "tracker.toml") as path:
        return load_tracker(path, told)


def agent_config() -> AgentConfig:
    told = environment(container("DaemonSet", "p2pdist-agent", "agent"))
    with config_file("p2pdist-agent", "agent.toml") as path:
        labels = path.with_name("labels")
        labels.write_text('app.kubernetes.io/name="p2pdist"\ntopology.kubernetes.io/zone="eu-1a"')  # as a kubelet does
        return load_agent(path, told | {"P2PDIST_NODE_LABELS_FILE": str(labels)})


@contextmanager
def config_file(config_map: str, name: str) -> Iterator[Path]:
    """As it would be mounted."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_text(find("ConfigMap", config_map)["data"][name])
        yield path
