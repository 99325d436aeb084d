"""One mount, as a value: what to pass to mount(2), decided here and done by the shim."""

from __future__ import annotations

from dataclasses import dataclass, replace

from atoll.linux.userns import IDMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount to be made at `target`; a relative `target` is below the root file system, empty is the root itself.

    `options` are as in fstab(5): flags (`ro`, `rbind`) and data (`lowerdir=...`) together.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


def with_users(mounts: tuple[Mount, ...], users: IDMap | None) -> tuple[Mount, ...]:
    """The mounts of a snapshot that was prepared for `users`, so that its files belong to them, as seen inside.

    The options are those of containerd's snapshotters: `uidmap=<inside>:<host>:<length>,...` and `gidmap=`.
    """
    if users is None:
        return mounts
    options = tuple(
        f"{name}=" + ",".join(f"{one.container_id}:{one.host_id}:{one.length}" for one in ranges)
        for name, ranges in (("uidmap", users.uids), ("gidmap", users.gids))
    )
    return tuple(
        replace(mount, options=(*mount.options, *options)) if mount.type == "overlay" else mount for mount in mounts
    )
