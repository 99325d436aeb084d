"""The fake controller as a subject of the kit, with everything that its checks can use."""

from __future__ import annotations

from atoll.sandbox.controller import Controller, ControllerInstance, CreateOptions, Runtime, Sandbox
from atoll.testing.conformance import Subject
from atoll.testing.fake import REFUSE, STUCK, FakeController


def fake_subject(controller: FakeController | None = None, within_s: float = 10.0) -> Subject:
    made = controller or FakeController(sockets="/run/fake")
    latest = [made]

    async def end(instance: ControllerInstance) -> int:
        latest[0].end(instance.sandbox_id, 7)
        return 7

    async def populate(instance: ControllerInstance) -> None:
        latest[0].join(instance.sandbox_id)

    async def tasks(instance: ControllerInstance) -> int:
        assert instance.address.removeprefix("ttrpc+unix://") in made.host.sockets
        return instance.pid

    async def restart(sandboxes: tuple[Sandbox, ...]) -> Controller:
        latest[0] = latest[0].restarted(*(one.id for one in sandboxes))
        return latest[0]

    return Subject(
        controller=made,
        name="fake",
        sandbox=lambda made: Sandbox(id=made, sandboxer="fake", runtime=Runtime(name="io.containerd.fake.v1")),
        options=lambda made: CreateOptions(),
        refused=lambda made: CreateOptions(annotations={REFUSE: "yes"}),
        stuck=lambda made: CreateOptions(annotations={STUCK: "yes"}),
        end=end,
        host=made.host,
        namespaces=frozenset({"ipc", "net", "pid"}),
        populate=populate,
        tasks=tasks,
        restart=restart,
        within_s=within_s,
        settle_s=0.0,
    )
