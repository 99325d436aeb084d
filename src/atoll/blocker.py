"""A process that somebody waits for: what the daemon's account of a pod tells, and `client.why` hands on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """A process outside the pod that works for it; `state` is the kernel's letter.

    `wait_channel` is where in the kernel it waits, empty where that tells none.
    """

    pid: int
    parent: int
    role: str
    command: str
    state: str
    wait_channel: str
    age_s: float
