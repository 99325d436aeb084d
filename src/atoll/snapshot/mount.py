"""One mount, as a value: what to pass to mount(2), decided here and done by the shim."""

from __future__ import annotations

import os.path
from dataclasses import dataclass, replace

OPTIONS_LIMIT_BYTES = 4095
"""mount(2) copies at most one page of options, its closing NUL included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount to be made at `target`; a relative `target` is below the root file system, empty is the root itself.

    `options` are as in fstab(5): flags (`ro`, `rbind`) and data (`lowerdir=...`) together.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()

    def compact(self) -> tuple[str, Mount]:
        """The working directory to mount from and an equal mount that is short enough for mount(2).

        An overlay of many layers names more than a page of folders. Where the options are too long, the
        lower folders are given relative to the folder that they share, which must then be the working
        directory of the (single-threaded) caller of mount(2). Otherwise the directory is `/` and the
        mount is this one. A caller that uses fsconfig(2) with `lowerdir+` needs none of this.
        """
        if self.type != "overlay" or len(",".join(self.options).encode()) <= OPTIONS_LIMIT_BYTES:
            return "/", self
        lowers = next((o.removeprefix("lowerdir=") for o in self.options if o.startswith("lowerdir=")), "")
        folders = lowers.split(":")
        shared = os.path.commonpath(folders)
        lowerdir = "lowerdir=" + ":".join(os.path.relpath(folder, shared) for folder in folders)
        options = tuple(lowerdir if o.startswith("lowerdir=") else o for o in self.options)
        return shared, replace(self, options=options)
