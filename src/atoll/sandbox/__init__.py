"""The sandbox contract, its records, and how a controller is put on a wire.

    controller   `Controller` to subclass, and the values it takes and gives
    serving      `serve` and `run`: a controller of one's own on gRPC, ttrpc, or both
    service      the face of controllers on the wires     operations   whose turn it is, and what is undone
    wire         protobuf and the contract's values       address      where a controller is served, as text
    lives        `Lives`: the books of a controller that keeps its sandboxes in memory
    store        the durable store of sandbox records     filters, regex, codec, config, metadata, annotations

The names below are imported at their first use: a shim that needs the contract alone has no gRPC and no SQLite.
"""

# Not `from __future__ import annotations`: that name is a module of this package.
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.sandbox.controller import CleanupFailed as CleanupFailed
    from atoll.sandbox.controller import Controller as Controller
    from atoll.sandbox.controller import ControllerInstance as ControllerInstance
    from atoll.sandbox.controller import ControllerStatus as ControllerStatus
    from atoll.sandbox.controller import CreateOptions as CreateOptions
    from atoll.sandbox.controller import ExitStatus as ExitStatus
    from atoll.sandbox.controller import Metric as Metric
    from atoll.sandbox.controller import Mount as Mount
    from atoll.sandbox.controller import Platform as Platform
    from atoll.sandbox.controller import Runtime as Runtime
    from atoll.sandbox.controller import Sandbox as Sandbox
    from atoll.sandbox.controller import State as State
    from atoll.sandbox.controller import TypedAny as TypedAny
    from atoll.sandbox.lives import Life as Life
    from atoll.sandbox.lives import Lives as Lives
    from atoll.sandbox.namespaces import POD_CONFIG as POD_CONFIG
    from atoll.sandbox.serving import listening as listening
    from atoll.sandbox.serving import run as run
    from atoll.sandbox.serving import serve as serve

_PLACES = {
    "Life": "atoll.sandbox.lives",
    "Lives": "atoll.sandbox.lives",
    "POD_CONFIG": "atoll.sandbox.namespaces",
    "listening": "atoll.sandbox.serving",
    "run": "atoll.sandbox.serving",
    "serve": "atoll.sandbox.serving",
}


def __getattr__(name: str) -> object:
    if name.startswith("_"):
        raise AttributeError(f"module 'atoll.sandbox' has no attribute {name!r}")
    module = importlib.import_module(_PLACES.get(name, "atoll.sandbox.controller"))
    if name in _PLACES or name in module.__all__:
        return getattr(module, name)
    raise AttributeError(f"module 'atoll.sandbox' has no attribute {name!r}")
