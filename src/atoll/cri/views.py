"""From what the engine holds to what CRI clients read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atoll.api import cri_runtime_v1_pb2 as pb
from atoll.api.codec import to_message
from atoll.container.status import State as ContainerState
from atoll.container.store import Container
from atoll.engine.pod import Pod
from atoll.engine.signals import DEFAULT, number
from atoll.image.model import Image
from atoll.oci import spec as oci
from atoll.sandbox.controller import State

PAUSED = "Paused"
"""The reason of a container that runs and was paused."""
CONTAINER_STATES = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
FindImage = Callable[[str], Image | None]


def pod_state(pod: Pod) -> pb.PodSandboxState:
    """CRI knows no UNKNOWN pod: it is one that is not ready."""
    return pb.SANDBOX_READY if pod.state is State.READY else pb.SANDBOX_NOTREADY


def pod_item(pod: Pod) -> pb.PodSandbox:
    item = pb.PodSandbox(
        id=pod.id,
        state=pod_state(pod),
        created_at=pod.created_at_ns,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler_name,
    )
    if pod.config.metadata is not None:
        to_message(pod.config.metadata, item.metadata)
    return item


def pod_status(pod: Pod) -> pb.PodSandboxStatus:
    status = pb.PodSandboxStatus(
        id=pod.id,
        state=pod_state(pod),
        created_at=pod.created_at_ns,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler_name,
        network=pb.PodSandboxNetworkStatus(ip=pod.ip),
    )
    if pod.attachment is not None and pod.ip:
        for address in pod.attachment.additional_ips:
            status.network.additional_ips.add(ip=address)
    if pod.config.metadata is not None:
        to_message(pod.config.metadata, status.metadata)
    to_message(pod.config.namespaces, status.linux.namespaces.options)
    return status


def container_item(container: Container) -> pb.Container:
    config = container.metadata.config
    assert config is not None
    status = container.status.get()
    item = pb.Container(
        id=container.id,
        pod_sandbox_id=container.sandbox_id,
        image_ref=container.metadata.image_ref,
        image_id=container.metadata.image_ref,
        state=CONTAINER_STATES[status.state],
        created_at=status.created_at or container.record.created_at,
        labels=config.labels,
        annotations=config.annotations,
    )
    if config.metadata is not None:
        to_message(config.metadata, item.metadata)
    if config.image is not None:
        to_message(config.image, item.image)
    return item


def container_status(container: Container, find_image: FindImage) -> pb.ContainerStatus:
    config = container.metadata.config
    assert config is not None
    status = container.status.get()
    state = status.state
    ended = state in (ContainerState.EXITED, ContainerState.UNKNOWN)
    view = pb.ContainerStatus(
        id=container.id,
        state=CONTAINER_STATES[state],
        created_at=status.created_at or container.record.created_at,
        started_at=status.started_at,
        finished_at=status.finished_at if ended else 0,
        exit_code=status.exit_code if ended else 0,
        reason=status.reason,
        message=status.message,
        labels=config.labels,
        annotations=config.annotations,
        log_path=container.metadata.log_path,
        image_id=container.metadata.image_ref,
        image_ref=container.metadata.image_ref,
    )
    if state is ContainerState.EXITED and not status.reason:
        view.reason = "Completed" if status.exit_code == 0 else "Error"
    if state is ContainerState.RUNNING and container.is_paused:
        view.reason = PAUSED
    if config.metadata is not None:
        to_message(config.metadata, view.metadata)
    if config.image is not None:
        to_message(config.image, view.image)
    image = find_image(container.metadata.image_ref)
    if image is not None:
        if image.repo_tags:
            view.image.image = image.repo_tags[0]
        if image.repo_digests:
            view.image_ref = image.repo_digests[0]
    for mount in config.mounts:
        to_message(mount, view.mounts.add())
    if status.resources is not None and status.resources.linux is not None:
        to_message(status.resources.linux, view.resources.linux)
    _fill_user(container, view)
    _fill_stop_signal(view, config.stop_signal, container.metadata.stop_signal)
    return view


def _fill_user(container: Container, view: pb.ContainerStatus) -> None:
    process = oci.decode(container.record.spec).process
    if process is not None:
        view.user.linux.uid = process.user.uid
        view.user.linux.gid = process.user.gid
        view.user.linux.supplemental_groups.extend(process.user.additional_gids)


def _fill_stop_signal(view: pb.ContainerStatus, asked: int, image: str) -> None:
    if not asked:
        wanted = number(image) if image else int(DEFAULT)
        asked = next((value for name, value in pb.Signal.items() if value and number(name) == wanted), pb.SIGTERM)
    view.stop_signal = asked  # pyright: ignore[reportAttributeAccessIssue]  an enum field takes its number


def image_item(image: Image) -> pb.Image:
    item = pb.Image(
        id=image.id, repo_tags=image.repo_tags, repo_digests=image.repo_digests, size=image.size, pinned=image.pinned
    )
    user = image.config.user.partition(":")[0]
    if user.isdigit():
        item.uid.value = int(user)
    else:
        item.username = user
    return item


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether every label of the selector is there with its value."""
    return all(labels.get(key) == value for key, value in selector.items())
