"""Pod manifests: what is asked for of CRI, and what is refused by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client.manifest import Manifest, parse


def pod(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    main = {"name": "main", "image": "app:1", **(container or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [main], **spec}}


def read(document: dict[str, Any]) -> Manifest:
    return parse(msgspec.yaml.encode(document), "web.yaml")


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(errors.InvalidArgument) as refused:
        read(document)
    return refused.value.message.removeprefix("web.yaml: ")


def test_a_pod_has_its_name_its_namespace_and_its_labels() -> None:
    document = pod()
    document["metadata"] = {"name": "web", "namespace": "shop", "labels": {"a": "b"}, "annotations": {"c": "d"}}
    made = read(document).pod
    assert (made.metadata.name, made.metadata.namespace, made.metadata.uid) == ("web", "shop", "web")
    assert (dict(made.labels), made.annotations["c"], made.hostname) == ({"a": "b"}, "d", "web")


def test_variables_are_expanded_as_a_kubelet_does() -> None:
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)$(LATER) $$(A)"},
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
    ]
    config = read(pod({"env": env, "command": ["run", "$(B)"], "args": ["$(ME)", "$(NOBODY)"]})).containers[0].config
    assert [(one.key, one.value) for one in config.envs] == [("A", b"1"), ("B", b"1$(LATER) $(A)"), ("ME", b"default")]
    assert (list(config.command), list(config.args)) == (["run", "1$(LATER) $(A)"], ["default", "$(NOBODY)"])


@pytest.mark.parametrize(
    ("limits", "quota", "memory"),
    [
        ({"cpu": "250m", "memory": "64Mi"}, 25_000, 64 << 20),
        ({"cpu": 2, "memory": "1G"}, 200_000, 10**9),
        ({"cpu": "0.5", "memory": "128974848"}, 50_000, 128974848),
        ({"memory": "1.5Gi"}, 0, 3 << 29),
        ({"memory": "129e6"}, 0, 129_000_000),
        ({"memory": "700Ki"}, 0, 700 << 10),
    ],
)
def test_quantities(limits: dict[str, Any], quota: int, memory: int) -> None:
    resources = read(pod({"resources": {"limits": limits}})).containers[0].config.linux.resources
    assert (resources.cpu_quota, resources.memory_limit_in_bytes) == (quota, memory)


def test_requests_are_shares() -> None:
    resources = read(pod({"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}})).containers[0].config.linux
    assert (resources.resources.cpu_shares, resources.resources.memory_limit_in_bytes) == (102, 0)


def test_volumes(tmp_path: Path) -> None:
    volumes = [
        {"name": "data", "emptyDir": {}},
        {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "host", "hostPath": {"path": str(tmp_path / "made"), "type": "DirectoryOrCreate"}},
    ]
    mounts = [
        {"name": "data", "mountPath": "/data"},
        {"name": "fast", "mountPath": "/fast", "readOnly": True},
        {"name": "host", "mountPath": "/host", "mountPropagation": "HostToContainer"},
    ]
    made = read(pod({"volumeMounts": mounts}, volumes=volumes))
    config = made.containers[0].config
    assert made.pod.annotations["io.atoll.pod/volumes"] == "data;fast:memory=1048576"
    assert config.annotations["io.atoll.container/volumes"] == "data:/data;fast:/fast:ro"
    assert [(one.host_path, one.container_path, one.propagation) for one in config.mounts] == [
        (str(tmp_path / "made"), "/host", cri.PROPAGATION_HOST_TO_CONTAINER)
    ]
    assert (tmp_path / "made").is_dir()


def test_security_of_the_pod_counts_where_the_container_says_nothing() -> None:
    security = {
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "supplementalGroups": [7],
        "sysctls": [{"name": "a.b", "value": "1"}],
    }
    document = pod({"securityContext": {"runAsUser": 5, "capabilities": {"drop": ["ALL"]}}}, securityContext=security)
    document["spec"]["containers"].append({"name": "other", "image": "app:1"})
    made = read(document)
    one, other = (plan.config.linux.security_context for plan in made.containers)
    assert (one.run_as_user.value, one.run_as_group.value, other.run_as_user.value) == (5, 1000, 1000)
    assert (list(one.capabilities.drop_capabilities), list(other.supplemental_groups)) == (["ALL"], [7])
    assert dict(made.pod.linux.sysctls) == {"a.b": "1"}
    assert one.seccomp.profile_type == cri.SecurityProfile.RuntimeDefault


def test_a_privileged_container_hides_nothing() -> None:
    security = read(pod({"securityContext": {"privileged": True}})).containers[0].config.linux.security_context
    assert (list(security.masked_paths), security.seccomp.profile_type) == ([], cri.SecurityProfile.Unconfined)


def test_host_ports_are_published_and_others_say_what_listens() -> None:
    ports = [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}, {"containerPort": 90, "name": "web"}]
    made = read(pod({"ports": ports})).pod
    assert [(one.host_port, one.container_port, one.protocol) for one in made.port_mappings] == [(8080, 80, cri.UDP)]
    assert made.annotations["io.atoll.ports"] == "8080->80/udp"


def test_namespaces() -> None:
    shared = read(pod(shareProcessNamespace=True)).pod.linux.security_context.namespace_options
    host = read(pod(hostNetwork=True, hostPID=True, hostIPC=True)).pod
    of_host = host.linux.security_context.namespace_options
    assert (shared.pid, shared.network) == (cri.POD, cri.POD)
    assert (of_host.network, of_host.pid, of_host.ipc, host.hostname) == (cri.NODE, cri.NODE, cri.NODE, "")


def test_when_an_image_is_pulled() -> None:
    def pull(image: str, **policy: str) -> str:
        return read(pod({"image": image, **policy})).containers[0].pull

    assert (pull("a:1"), pull("a:latest"), pull("a:latest", imagePullPolicy="Never")) == ("missing", "always", "never")


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (pod(restartPolicy="Always"), "spec.restartPolicy: Always: is not supported; nobody restarts"),
        (pod(nodeSelector={"a": "b"}), "spec.nodeSelector: is not supported"),
        (pod(dnsPolicy="ClusterFirst"), "spec.dnsPolicy: ClusterFirst: is not supported; there is no cluster DNS"),
        (pod(serviceAccountName="x"), "spec.serviceAccountName: is not supported"),
        (pod({"livenessProbe": {}}), "spec.containers[0].livenessProbe: is not supported"),
        (pod({"lifecycle": {}, "startupProbe": {}}), "spec.containers[0].lifecycle: is not supported, and 1 more"),
        (pod({"resources": {"limits": {"nvidia.com/gpu": 1}}}), "spec.containers[0].resources.limits.nvidia.com/gpu"),
        (pod({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}), "spec.containers[0].env[0].valueFrom: only"),
        (
            pod(volumes=[{"name": "v", "configMap": {"name": "x"}}]),
            "spec.volumes[0].configMap: is not supported; config",
        ),
        (pod(volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}]), "spec.volumes[0].emptyDir.sizeLimit"),
        (
            pod(volumes=[{"name": "v", "hostPath": {"path": "/no/such"}}]),
            "spec.volumes[0].hostPath.path: /no/such: No such",
        ),
        (
            pod({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            "spec.containers[0].volumeMounts[0].name: the pod has",
        ),
        (pod({"command": "sh"}), "spec.containers[0].command: must be a list, not a text"),
        (pod({"args": [1]}), "spec.containers[0].args[0]: must be a text, not a number; quote it"),
        (pod({"tty": "yes"}), "spec.containers[0].tty: must be true or false, not a text"),
        (
            pod({"resources": {"limits": {"memory": "lots"}}}),
            "spec.containers[0].resources.limits.memory: 'lots' is no",
        ),
        (
            pod({"securityContext": {"runAsUser": 0, "runAsNonRoot": True}}),
            "spec.containers[0].securityContext.runAsNonRoot",
        ),
        (pod({"image": None}), "spec.containers[0].image: is missing"),
        ({**pod(), "kind": "Deployment"}, "kind: Deployment: is not supported"),
        ({**pod(), "status": {"phase": "x"}}, "status: is not supported"),
        ({**pod(), "metadata": {}}, "metadata.name: is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_path(document: dict[str, Any], path: str) -> None:
    assert refusal(document).startswith(path)


def test_a_null_is_as_a_field_that_is_not_there() -> None:
    assert read(pod({"livenessProbe": None}, nodeName=None)).containers[0].config.metadata.name == "main"


@pytest.mark.parametrize("text", [b"a: [", b"\xff\xfe\x00", b"just words", b"- 1", b""])
def test_what_is_no_manifest_is_told_in_one_line(text: bytes) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        parse(text, "x.yaml")
    assert refused.value.message.startswith("x.yaml: ")
    assert "\n" not in refused.value.message
