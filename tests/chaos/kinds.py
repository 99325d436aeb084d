"""The kinds of lives there are, in the order in which points are shared out among them."""

from __future__ import annotations

import shutil

from tests.chaos.branches import BranchLife, PoolLife
from tests.chaos.hosted import HostedFarLife, HostedKilledLife, HostedLife, HostedPauseLife
from tests.chaos.images import ImageLife
from tests.chaos.life import Life, PodLife
from tests.chaos.pods import CheckpointLife, FarLife, ForeignLife, MappedLife, PausedLife
from tests.chaos.restarts import RestartLife

NEEDS = {"behind containerd's shim": "containerd-shim-runc-v2", "checkpointed": "criu"}
"""Programs that a machine may lack, by the name of the life that needs them."""
LIVES: dict[str, type[Life]] = {
    "pod": PodLife,
    "images": ImageLife,
    "hosted": HostedLife,
    "mapped": MappedLife,
    "paused": PausedLife,
    "behind containerd's shim": ForeignLife,
    "far": FarLife,
    "hosted paused": HostedPauseLife,
    "hosted far": HostedFarLife,
    "checkpointed": CheckpointLife,
    "branched": BranchLife,
    "pooled": PoolLife,
    "hosted killed": HostedKilledLife,
    "restart": RestartLife,
}


def possible() -> dict[str, type[Life]]:
    """Those that this machine can lead."""
    return {name: life for name, life in LIVES.items() if name not in NEEDS or shutil.which(NEEDS[name])}
