"""A private Atoll daemon as the runtime of a CRI client, and a registry that stands for those of its images."""

from __future__ import annotations

import contextlib
import json
from types import TracebackType
from typing import Self

from atoll.api import cri_runtime_v1_pb2 as pb
from bench import containerd_images, host
from bench.cri_subject import Tools
from bench.daemons import Atoll
from bench.places import PLUGIN_FOLDERS, Places

HANDLERS = ("crun", "runc")
REGISTRIES = ("docker.io", "registry.k8s.io", "k8s.gcr.io", "gcr.io")
"""Which the images of the specs are of."""


class AtollRuntime(Atoll):
    """`atoll serve` whose registries are one on the loopback."""

    def __init__(self, places: Places, tools: Tools) -> None:
        super().__init__(places)
        self.tools = tools
        self.images = containerd_images.Images.of(containerd_images.stand_ins())
        self._registry = containerd_images.Registry(self.images)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._registry)
            super().__enter__()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._registry.__exit__()

    def prepare(self) -> None:
        mirror = self._registry.url.removeprefix("http://")
        handlers = "".join(f'[runtimes.{name}]\noci_runtime = "{name}"\n' for name in HANDLERS)
        registries = "".join(f'[images.registries."{name}"]\nmirrors = ["{mirror}"]\n' for name in REGISTRIES)
        (self.places.base / "config.toml").write_text(
            f"""log_level = "info"
default_runtime = "{HANDLERS[0]}"
cgroup_parent = "{self.places.cgroup}"
{handlers}
[network]
conf_dir = "{self.places.conf_dir}"
bin_dirs = {json.dumps(PLUGIN_FOLDERS)}
pool_size = 0
{registries}
[images.registries."{mirror}"]
plain_http = true
"""
        )

    def equip(self) -> None:
        """The image that the checks of crictl run; critest pulls its own."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=containerd_images.WEB))
        self.cri.call("PullImage", request, pb.PullImageResponse, service="ImageService")


def held(runtime: AtollRuntime) -> frozenset[str]:
    """What the runtime's pods hold on this machine."""
    places = runtime.places
    pins = str(places.state / "netns")  # stays with the daemon's state, as /run/netns does
    found = {f"mount {point}" for point in host.mounts_with(places.prefix) if point != pins}
    found |= {f"cgroup {path}" for path in host.cgroups_with(places.prefix) if path.name.startswith("cri-")}
    found |= {
        f"process {pid}: {host.command(pid)}"
        for pid in runtime.processes.below
        if "containerd-shim-atoll" not in host.command(pid)
    }
    if places.attached():
        found.add(f"networks: {places.held()}")
    for name in ("pods", "shims", "bundles", "netns"):
        found |= {f"file {path}" for path in (places.state / name).glob("*")}
    return frozenset(found)
