"""The daemon's configuration file: TOML, every key optional, a key that nobody knows refused.

    sections   the tables and the defaults of their keys
    rules      what holds beyond the type of a value
    text       where in the file a key is, and a mistake in the words of the file
    loading    from the file to a `Config`

A mistake is told with the file, the line and the way out. docs/config.md says what each key means.
"""

from atoll.config.loading import DEFAULT_PATH, check, file_of, load
from atoll.config.sections import (
    CdiSection,
    Config,
    ImageSection,
    MetricsSection,
    NetworkSection,
    NriSection,
    Registry,
    RuntimeHandler,
    SandboxSection,
    Section,
    StreamingSection,
    TelemetrySection,
)

__all__ = [
    "DEFAULT_PATH",
    "CdiSection",
    "Config",
    "ImageSection",
    "MetricsSection",
    "NetworkSection",
    "NriSection",
    "Registry",
    "RuntimeHandler",
    "SandboxSection",
    "Section",
    "StreamingSection",
    "TelemetrySection",
    "check",
    "file_of",
    "load",
]
