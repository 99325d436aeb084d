"""How this process gives memory back."""

from __future__ import annotations

import ctypes

# mallopt(3). Blocks of this size have pages of their own, which go back to the kernel with them; without it the first
# big answer that is freed makes glibc keep all later ones of up to 32 MiB.
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 256 * 1024


def give_back_large_blocks() -> None:
    """Let what a large answer took go back when it is freed; nothing where the C library has no such switch."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
