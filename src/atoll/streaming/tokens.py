"""Tokens: each stands for one request, works once, and for a short time only."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from atoll import errors

T = TypeVar("T")

TOKEN_BYTES = 18
"""Of randomness in a token: 144 bits, 24 characters."""
MAX_CHARACTERS = 64
LIFETIME_S = 60.0
MAX_OUTSTANDING = 1000


class Tokens(Generic[T]):
    """Requests by their tokens.

    They are found by a keyed digest, so that how long a look-up takes says nothing of the tokens that there are.
    """

    def __init__(
        self,
        *,
        lifetime_s: float = LIFETIME_S,
        limit: int = MAX_OUTSTANDING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifetime_s = lifetime_s
        self._limit = limit
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._entries: dict[bytes, tuple[float, T]] = {}  # the oldest first

    def issue(self, request: T) -> str:
        """A new token for `request`; `ResourceExhausted` while too many wait to be used."""
        self.purge()
        if len(self._entries) >= self._limit:
            raise errors.ResourceExhausted(
                f"streaming: {self._limit} sessions wait for their clients; try again in {self._lifetime_s:g} s"
            )
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._entries[self._digest(token)] = (self._clock() + self._lifetime_s, request)
        return token

    def redeem(self, token: str) -> T | None:
        """The request of a token, which is used up; None where it is unknown, used or too old."""
        if len(token) > MAX_CHARACTERS:
            return None
        self.purge()
        entry = self._entries.pop(self._digest(token), None)
        return entry[1] if entry is not None else None

    def purge(self) -> None:
        """Forget those that are too old."""
        now = self._clock()
        while self._entries:
            digest = next(iter(self._entries))
            if self._entries[digest][0] > now:
                return
            del self._entries[digest]

    def __len__(self) -> int:
        return len(self._entries)

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(errors="replace"), key=self._key, digest_size=32).digest()
