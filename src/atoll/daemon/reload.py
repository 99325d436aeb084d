"""The configuration file read again: by SIGHUP, and by `atoll reload`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from atoll import errors
from atoll.config import Config
from atoll.config.changes import Changes, Live, between
from atoll.daemon.images import image_settings
from atoll.image.store import ImageStore

log = logging.getLogger(__name__)
Read = Callable[[], Config]
"""Reads the file, with what the command line has said beside it; raises as `atoll.config.load`."""


class Reloader:
    """Puts into force what a running daemon can take; a file that is refused changes nothing."""

    def __init__(self, live: Live, images: ImageStore, read: Read, file: str) -> None:
        self._live = live
        self._images = images
        self._read = read
        self.file = file

    def reload(self) -> Changes:
        """Read the file and apply it. Raises `InvalidArgument` with the line and the reason, `NotFound`."""
        changes = between(self._live.config, self._read())
        self._images.configure(image_settings(changes.config))
        self._live.config = changes.config
        logging.getLogger().setLevel(changes.config.log_level.upper())
        log.warning(
            "%s: read again: in force now: %s; at the next start: %s",
            self.file or "no config file",
            ", ".join(changes.applied) or "nothing new",
            ", ".join(changes.waiting) or "nothing",
        )
        return changes

    def answer(self) -> tuple[str, Changes]:
        """As `reload`, with the name of the file."""
        return self.file, self.reload()

    def on_signal(self) -> None:
        """As `reload`, for who waits for no answer."""
        try:
            self.reload()
        except errors.AtollError as error:
            log.error("the configuration stays as it was: %s", error)
