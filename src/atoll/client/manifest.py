"""Kubernetes Pod manifests: what a `kind: Pod` asks for, as CRI has it.

What is supported works as on a node; every other field is refused by its path. There is nobody here who restarts a
container, schedules, probes, or keeps config maps and secrets: a kubelet does, with Atoll as its runtime.
Source: the Kubernetes API reference, Pod v1 core.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import manifest_containers as containers
from atoll.client import request
from atoll.client.manifest_containers import ContainerPlan
from atoll.client.manifest_fields import Fields
from atoll.client.manifest_volumes import Volume, read_volumes
from atoll.unreadable import UNREADABLE

MAX_BYTES = 1 << 20
GRACE = "io.atoll.pod/grace"
"""Annotation: the seconds that the pod's containers get to end, where its manifest says."""
NO_RESTARTS = "nobody restarts containers here; write Never, or use a kubelet"
NO_CLUSTER = "there is no cluster DNS here; write Default, or None with a dnsConfig"
NO_SCHEDULER = ("nodeSelector", "affinity", "tolerations", "nodeName", "schedulerName", "topologySpreadConstraints")
_DNS_POLICIES = ("", "Default", "None")
_HOST_OPTIONS = {"hostNetwork": "network", "hostPID": "pid", "hostIPC": "ipc"}
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A pod and its containers, ready to be asked for; `init` run to their ends one after another before the others."""

    name: str
    namespace: str
    runtime: str
    pod: cri.PodSandboxConfig
    init: tuple[ContainerPlan, ...]
    containers: tuple[ContainerPlan, ...]


def parse(text: str | bytes, source: str = "manifest") -> Manifest:
    """The pod of a manifest in YAML or JSON.

    Raises `InvalidArgument` that begins with the path of the field that is wrong, missing or not supported.
    """
    try:
        if len(text) > MAX_BYTES:
            raise errors.InvalidArgument(f"{len(text)} bytes; at most {MAX_BYTES} are read")
        found: object = msgspec.yaml.decode(text)
        return _read(found)
    except UNREADABLE as error:
        raise errors.InvalidArgument(f"{source}: is no YAML: {' '.join(str(error).split())}") from None
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(f"{source}: {error.message}") from None


def _read(found: object) -> Manifest:
    with Fields("", found) as top:
        top.one_of("apiVersion", ("v1",))
        top.one_of("kind", ("Pod",), instead="write kind: Pod, with what its template has")
        metadata, spec = top.object("metadata"), top.object("spec")
        if metadata is None or spec is None:
            raise errors.InvalidArgument(f"{'spec' if metadata is not None else 'metadata'}: is missing")
        with metadata:
            name = request.require_name(metadata.need("name"), "pod")
            namespace = metadata.text("namespace", _DEFAULT_NAMESPACE)
            labels, annotations = metadata.mapping("labels"), metadata.mapping("annotations")
        with spec:
            return _pod(spec, cri.PodSandboxMetadata(name=name, uid=name, namespace=namespace), labels, annotations)


def _pod(
    spec: Fields, metadata: cri.PodSandboxMetadata, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> Manifest:
    _refuse_what_a_cluster_does(spec)
    options = _namespaces(spec)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    linux = cri.LinuxPodSandboxConfig(security_context=context)
    volumes = read_volumes(spec)
    defaults = containers.Defaults()
    security = spec.object("securityContext")
    if security is not None:
        with security:
            for one in security.objects("sysctls"):
                with one:
                    linux.sysctls[one.need("name")] = one.need("value")
            defaults = containers.defaults_of(security)
    scope = containers.Scope(
        pod=metadata, namespaces=options, volumes={one.name: one for one in volumes}, defaults=defaults
    )
    init = tuple(containers.read(one, scope, is_init=True) for one in spec.objects("initContainers"))
    main = tuple(containers.read(one, scope, is_init=False) for one in spec.objects("containers"))
    if not main:
        raise errors.InvalidArgument(f"{spec.at('containers')}: has none")
    _require_different(spec, [*init, *main])
    ports = [port for one in main for port in one.ports]
    if ports and options.network == cri.NODE:
        ports = []  # they are the host's already
    config = cri.PodSandboxConfig(
        metadata=metadata,
        hostname="" if options.network == cri.NODE else spec.text("hostname", metadata.name),
        port_mappings=ports,
        labels=labels,
        annotations={**annotations, **_annotations(spec, volumes, ports)},
        linux=linux,
    )
    if options.network == cri.NODE:
        spec.text("hostname")
    _dns(spec, config)
    return Manifest(
        name=metadata.name,
        namespace=metadata.namespace,
        runtime=spec.text("runtimeClassName"),
        pod=config,
        init=init,
        containers=main,
    )


def _refuse_what_a_cluster_does(spec: Fields) -> None:
    spec.one_of("restartPolicy", ("", "Never"), instead=NO_RESTARTS)
    for name in NO_SCHEDULER:
        if spec.has(name):
            raise errors.InvalidArgument(f"{spec.at(name)}: is not supported; a pod runs on this machine, or nowhere")
    if spec.flag("automountServiceAccountToken"):
        raise errors.InvalidArgument(f"{spec.at('automountServiceAccountToken')}: there are no service accounts here")
    spec.flag("enableServiceLinks")  # there are no services, whose variables it would bring


def _namespaces(spec: Fields) -> cri.NamespaceOption:
    found = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)
    if spec.flag("shareProcessNamespace"):
        found.pid = cri.POD
    for name, kind in _HOST_OPTIONS.items():
        if spec.flag(name):
            setattr(found, kind, cri.NODE)
    return found


def _annotations(spec: Fields, volumes: tuple[Volume, ...], ports: list[cri.PortMapping]) -> dict[str, str]:
    found = {request.REQUEST: secrets.token_hex(8)}
    shared = [one.annotation for one in volumes if one.annotation]
    if shared:
        found[request.POD_VOLUMES] = ";".join(shared)
    if ports:
        found[request.PORTS] = ", ".join(
            f"{one.host_ip + ':' if one.host_ip else ''}{one.host_port}->{one.container_port}"
            f"/{cri.Protocol.Name(one.protocol).lower()}"
            for one in ports
        )
    grace, deadline = spec.number("terminationGracePeriodSeconds"), spec.number("activeDeadlineSeconds")
    if grace is not None:
        found[GRACE] = str(max(grace, 0))
    if deadline is not None:
        found[request.LEASE_TTL] = str(deadline)
    return found


def _dns(spec: Fields, config: cri.PodSandboxConfig) -> None:
    policy = spec.one_of("dnsPolicy", _DNS_POLICIES, instead=NO_CLUSTER)
    wanted = spec.object("dnsConfig")
    if wanted is None:
        if policy == "None":
            raise errors.InvalidArgument(f"{spec.at('dnsConfig')}: is missing, which dnsPolicy None needs")
        return
    if policy != "None":
        raise errors.InvalidArgument(f"{spec.at('dnsConfig')}: is supported with dnsPolicy None, as all there is")
    with wanted:
        config.dns_config.servers.extend(wanted.texts("nameservers"))
        config.dns_config.searches.extend(wanted.texts("searches"))
        for one in wanted.objects("options"):
            with one:
                value = one.text("value")
                config.dns_config.options.append(f"{one.need('name')}:{value}" if value else one.need("name"))


def _require_different(spec: Fields, plans: list[ContainerPlan]) -> None:
    names = [one.config.metadata.name for one in plans]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise errors.InvalidArgument(f"{spec.at('containers')}: two are called {name!r}")
