"""How this process gives memory back."""

from __future__ import annotations

import ctypes

# mallopt(3). Without them the first big answer that is freed makes glibc keep all later ones of up to 32 MiB. Blocks of
# the first size have pages of their own, which go back to the kernel with them; buffers of streams are far smaller, and
# what they free at the heap's end stays up to the second size, so that a stream does not ask for it again and again.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 4 << 20
_TRIM_THRESHOLD_BYTES = 8 << 20


def give_back_large_blocks() -> None:
    """Let what a large answer took go back when it is freed; nothing where the C library has no such switch."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
