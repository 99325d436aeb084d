"""The containers of a Pod manifest, as CRI has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_UP, Decimal

from atoll import errors
from atoll.api import cri_runtime_v1_pb2 as cri
from atoll.client import request
from atoll.client.manifest_fields import Fields
from atoll.client.manifest_volumes import Volume
from atoll.hardening import MASKED_PATHS, READONLY_PATHS

PULLS: dict[str, request.PullPolicy] = {"Always": "always", "IfNotPresent": "missing", "Never": "never"}
_PROTOCOLS = {"TCP": cri.TCP, "UDP": cri.UDP, "SCTP": cri.SCTP}
_PROPAGATION = {
    "None": cri.PROPAGATION_PRIVATE,
    "HostToContainer": cri.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": cri.PROPAGATION_BIDIRECTIONAL,
}
_PROFILES = {
    "RuntimeDefault": cri.SecurityProfile.RuntimeDefault,
    "Unconfined": cri.SecurityProfile.Unconfined,
    "Localhost": cri.SecurityProfile.Localhost,
}
_REFERENCE = re.compile(r"\$(?:\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """One container to be; `must_not_be_root` is told by its image where the manifest names no user."""

    config: cri.ContainerConfig
    pull: request.PullPolicy
    ports: tuple[cri.PortMapping, ...]
    must_not_be_root: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the pod's security context says for containers that do not say it themselves."""

    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] = ()
    not_root: bool = False
    seccomp: cri.SecurityProfile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The pod around a container."""

    pod: cri.PodSandboxMetadata
    namespaces: cri.NamespaceOption
    volumes: Mapping[str, Volume]
    defaults: Defaults = field(default_factory=Defaults)


def defaults_of(security: Fields) -> Defaults:
    return Defaults(
        user=security.number("runAsUser"),
        group=security.number("runAsGroup"),
        groups=tuple(security.numbers("supplementalGroups")),
        not_root=security.flag("runAsNonRoot"),
        seccomp=_seccomp(security),
    )


def read(one: Fields, scope: Scope, *, is_init: bool) -> ContainerPlan:
    """One container of the manifest; raises `InvalidArgument` as the manifest's other parts do."""
    with one:
        name = request.require_name(one.need("name"), "container")
        env = _environment(one, scope)
        security = one.object("securityContext")
        context, not_root = _security(security, scope)
        image = one.need("image")
        default_pull = "Always" if image.endswith(":latest") else "IfNotPresent"
        tty, stdin = one.flag("tty"), one.flag("stdin")
        mounts, shared = _mounts(one, scope)
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=image, user_specified_image=image),
            command=[_expanded(word, env) for word in one.texts("command")],
            args=[_expanded(word, env) for word in one.texts("args")],
            working_dir=one.text("workingDir"),
            envs=[cri.KeyValue(key=key, value=value.encode()) for key, value in env.items()],
            mounts=mounts,
            annotations={request.VOLUMES: ";".join(shared)} if shared else {},
            log_path=f"{name}.log",
            stdin=stdin,
            stdin_once=one.flag("stdinOnce"),
            tty=tty,
            linux=cri.LinuxContainerConfig(security_context=context),
        )
        limits = _resources(one)
        if limits is not None:
            config.linux.resources.CopyFrom(limits)
        pull = PULLS[one.one_of("imagePullPolicy", tuple(PULLS), default_pull)]
        ports = _ports(one, scope)
        if is_init and ports:
            raise errors.InvalidArgument(f"{one.at('ports')}: is not supported; an init container has none")
        return ContainerPlan(config=config, pull=pull, ports=ports, must_not_be_root=not_root)


def _environment(one: Fields, scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in one.objects("env"):
        with each:
            name, source = each.need("name"), each.object("valueFrom")
            if source is None:
                found[name] = _expanded(each.text("value"), found)
                continue
            with source:
                field_of = source.object("fieldRef")
                if field_of is None:
                    raise errors.InvalidArgument(f"{source.path}: only a fieldRef is supported")
                with field_of:
                    field_of.one_of("apiVersion", ("", "v1"))
                    path = field_of.one_of("fieldPath", _FIELDS)
                    found[name] = str(getattr(scope.pod, path.removeprefix("metadata.")))
    return found


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` by the variables so far, `$$` by a dollar, as a kubelet has it; an unknown name stays."""
    return _REFERENCE.sub(lambda match: "$" if match[1] is None else env.get(match[1], match[0]), text)


def _mounts(one: Fields, scope: Scope) -> tuple[list[cri.Mount], list[str]]:
    """The mounts of paths of the host, and the words of the annotation for volumes of the pod."""
    mounts: list[cri.Mount] = []
    shared: list[str] = []
    for each in one.objects("volumeMounts"):
        with each:
            volume = scope.volumes.get(each.need("name"))
            if volume is None:
                raise errors.InvalidArgument(f"{each.at('name')}: the pod has no volume {each.need('name')!r}")
            path, read_only = each.need("mountPath"), each.flag("readOnly")
            propagation = each.one_of("mountPropagation", tuple(_PROPAGATION), "None")
            if not path.startswith("/") or re.search(r"[;:\0]", path):
                raise errors.InvalidArgument(
                    f"{each.at('mountPath')}: {path!r} must be an absolute path without : and ;"
                )
            if volume.host_path:
                mounts.append(
                    cri.Mount(
                        container_path=path,
                        host_path=volume.host_path,
                        readonly=read_only,
                        propagation=_PROPAGATION[propagation],
                    )
                )
            elif propagation != "None":
                raise errors.InvalidArgument(f"{each.at('mountPropagation')}: is for paths of the host")
            else:
                shared.append(f"{volume.name}:{path}{':ro' if read_only else ''}")
    return mounts, shared


def _ports(one: Fields, scope: Scope) -> tuple[cri.PortMapping, ...]:
    """The ports to publish; one without a hostPort says what listens, and changes nothing."""
    found: list[cri.PortMapping] = []
    for each in one.objects("ports"):
        with each:
            each.text("name")
            inside, outside, address = each.number("containerPort"), each.number("hostPort"), each.text("hostIP")
            protocol = _PROTOCOLS[each.one_of("protocol", tuple(_PROTOCOLS), "TCP")]
            for name, port in (("containerPort", inside), ("hostPort", outside)):
                if port is not None and not 0 < port < 65536:
                    raise errors.InvalidArgument(f"{each.at(name)}: {port}: a port is 1 to 65535")
            if inside is None:
                raise errors.InvalidArgument(f"{each.at('containerPort')}: is missing")
            if scope.namespaces.network == cri.NODE and outside not in (None, inside):
                raise errors.InvalidArgument(f"{each.at('hostPort')}: must be {inside} with hostNetwork")
            if outside is not None:
                found.append(
                    cri.PortMapping(protocol=protocol, container_port=inside, host_port=outside, host_ip=address)
                )
    return tuple(found)


def _resources(one: Fields) -> cri.LinuxContainerResources | None:
    wanted = one.object("resources")
    if wanted is None:
        return None
    with wanted:
        limits, requests = wanted.object("limits"), wanted.object("requests")
        cpu = memory = share = None
        if limits is not None:
            with limits:
                cpu, memory = limits.quantity("cpu"), limits.quantity("memory")
        if requests is not None:
            with requests:
                share = requests.quantity("cpu")
                requests.quantity("memory")  # is for schedulers
    made = request.resources(float(cpu) if cpu else None, _whole(memory) if memory else None)
    if share is None:
        return made
    made = made or cri.LinuxContainerResources()
    made.cpu_shares = max(request.CPU_MIN_SHARES, int(share * 1024))
    return made


def _whole(amount: Decimal) -> int:
    return int(amount.to_integral_value(ROUND_UP))


def _security(security: Fields | None, scope: Scope) -> tuple[cri.LinuxContainerSecurityContext, bool]:
    """The security context, and whether its image must say that it is not root."""
    made = cri.LinuxContainerSecurityContext(
        namespace_options=scope.namespaces, masked_paths=MASKED_PATHS, readonly_paths=READONLY_PATHS
    )
    user, group, not_root = scope.defaults.user, scope.defaults.group, scope.defaults.not_root
    profile = scope.defaults.seccomp
    if security is not None:
        with security:
            user = user if (own := security.number("runAsUser")) is None else own
            group = group if (own := security.number("runAsGroup")) is None else own
            not_root = security.flag("runAsNonRoot", not_root)
            profile = _seccomp(security) or profile
            made.privileged = security.flag("privileged")
            made.readonly_rootfs = security.flag("readOnlyRootFilesystem")
            made.no_new_privs = not security.flag("allowPrivilegeEscalation", True)
            capabilities = security.object("capabilities")
            if capabilities is not None:
                with capabilities:
                    made.capabilities.add_capabilities.extend(capabilities.texts("add"))
                    made.capabilities.drop_capabilities.extend(capabilities.texts("drop"))
            if not_root and user == 0:
                raise errors.InvalidArgument(f"{security.at('runAsNonRoot')}: but runAsUser is 0, which is root")
            if made.privileged and made.no_new_privs:
                raise errors.InvalidArgument(f"{security.at('privileged')}: needs allowPrivilegeEscalation")
    made.seccomp.CopyFrom(profile or cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault))
    if made.privileged:
        made.ClearField("masked_paths")
        made.ClearField("readonly_paths")
        made.seccomp.profile_type = cri.SecurityProfile.Unconfined
    if user is not None:
        made.run_as_user.value = user
    if group is not None:
        made.run_as_group.value = group
    made.supplemental_groups.extend(scope.defaults.groups)
    return made, not_root and user is None


def _seccomp(security: Fields) -> cri.SecurityProfile | None:
    wanted = security.object("seccompProfile")
    if wanted is None:
        return None
    with wanted:
        kind, path = wanted.one_of("type", tuple(_PROFILES)), wanted.text("localhostProfile")
        if (kind == "Localhost") != bool(path):
            raise errors.InvalidArgument(f"{wanted.at('localhostProfile')}: goes with type Localhost, and only with it")
        return cri.SecurityProfile(profile_type=_PROFILES[kind], localhost_ref=path)
