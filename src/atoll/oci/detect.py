"""Which OCI runtime to use: the one configured, else crun, else runc, if it really works on this host.

Being installed says little: crun 1.8 refuses a hybrid cgroup layout with a controller left in version 2, a
runtime may be blocked by a security module or an old kernel. So each candidate runs a container of the
host's own `/bin/true` once; the answer is kept in a file until the program, the boot or the cgroup layout changes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from atoll import errors
from atoll.linux import cgroup_layout
from atoll.linux.cgroup import Cgroup
from atoll.linux.cgroup_layout import MOUNT, Layout
from atoll.linux.process import Spawner, boot_id
from atoll.oci import spec
from atoll.oci.runtime import ENVIRONMENT, OCIRuntime

PREFERRED = ("crun", "runc")
CACHE_LIMIT_BYTES = 1 << 20
_HOST_FOLDERS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")


class RuntimeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found; `reason` says in one line why a runtime does not work, and the way out where known.

    The other fields tell when the finding holds no longer.
    """

    binary: str
    works: bool
    reason: str = ""
    version: str = ""
    modified_ns: int = 0
    boot_id: str = ""
    cgroups: str = ""


_cache_decoder = msgspec.json.Decoder(dict[str, RuntimeReport])


def find(name: str) -> Path | None:
    """The program `name`: a path as it is, a bare name in the daemon's PATH and then in the usual folders."""
    path = os.pathsep.join((os.environ.get("PATH", ""), ENVIRONMENT["PATH"]))
    found = shutil.which(name, path=path)
    return None if found is None else Path(found).resolve()


async def choose(configured: Sequence[str], spawner: Spawner, *, cache: Path) -> tuple[Path, list[RuntimeReport]]:
    """The first runtime of `configured` (empty: crun, then runc) that works, and what was found of each one tried.

    `cache` is a file of the daemon's volatile state. Raises `FailedPrecondition` with every reason where none works.
    """
    reports: list[RuntimeReport] = []
    for name in configured or PREFERRED:
        binary = find(name)
        if binary is None:
            reports.append(RuntimeReport(binary=name, works=False, reason="is not installed"))
            continue
        report = await probe(binary, spawner, cache=cache)
        reports.append(report)
        if report.works:
            return binary, reports
    told = "; ".join(f"{report.binary}: {report.reason}" for report in reports)
    raise errors.FailedPrecondition(f"no OCI runtime works here: {told}; install crun or runc")


async def probe(
    binary: Path, spawner: Spawner, *, cache: Path | None = None, folder: Path | None = None
) -> RuntimeReport:
    """Whether `binary` can run a container here; from `cache` where nothing changed since.

    Works in a temporary folder below `folder`, and leaves nothing. Never raises for a runtime that does not work.
    """
    known = _load(cache)
    blank = RuntimeReport(
        binary=str(binary),
        works=False,
        modified_ns=_modified_ns(binary),
        boot_id=boot_id(),
        cgroups=_cgroup_signature(),
    )
    if (kept := known.get(str(binary))) is not None and _holds(kept, blank):
        return kept
    report = await _try(binary, spawner, blank, folder)
    if cache is not None:
        _store(cache, {**known, str(binary): report})
    return report


def _modified_ns(binary: Path) -> int:
    try:
        return binary.stat().st_mtime_ns
    except OSError:
        return 0


def _holds(kept: RuntimeReport, now: RuntimeReport) -> bool:
    return (kept.modified_ns, kept.boot_id, kept.cgroups) == (now.modified_ns, now.boot_id, now.cgroups)


async def _try(binary: Path, spawner: Spawner, blank: RuntimeReport, folder: Path | None) -> RuntimeReport:
    name = f"atoll-probe-{secrets.token_hex(6)}"
    group = Cgroup(f"/{name}", cgroup_layout.detect())
    version = ""
    with tempfile.TemporaryDirectory(prefix="atoll-probe-", dir=folder) as base:
        runtime = OCIRuntime(binary, Path(base, "state"), spawner)
        try:
            version = (await runtime.features()).version
            status = await runtime.run(name, _bundle(Path(base), name))
        except errors.AtollError as error:
            return msgspec.structs.replace(blank, version=version, reason=_explain(error.message))
        finally:
            group.delete()
    if status != 0:
        return msgspec.structs.replace(blank, version=version, reason=f"ran /bin/true, which ended with {status}")
    return msgspec.structs.replace(blank, version=version, works=True)


def _bundle(base: Path, name: str) -> Path:
    rootfs = base / "rootfs"
    for folder in ("proc", "dev"):
        (rootfs / folder).mkdir(parents=True)
    built = spec.Spec(
        oci_version=spec.OCI_VERSION,
        process=spec.Process(args=("/bin/true",), cwd="/", env=(f"PATH={ENVIRONMENT['PATH']}",)),
        root=spec.Root(path=str(rootfs), readonly=True),
        mounts=(spec.Mount(destination="/proc", type="proc", source="proc"), *_host_programs(rootfs)),
        linux=spec.Linux(
            cgroups_path=f"/{name}",
            namespaces=tuple(spec.Namespace(type=kind) for kind in ("pid", "mount", "ipc", "uts")),
            resources=spec.Resources(devices=(spec.DeviceRule(allow=False, access="rwm"),)),
        ),
    )
    (base / "config.json").write_bytes(spec.encode(built))
    return base


def _host_programs(rootfs: Path) -> Iterator[spec.Mount]:
    for name in _HOST_FOLDERS:
        source = Path("/", name)
        if source.is_symlink():
            (rootfs / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            (rootfs / name).mkdir()
            yield spec.Mount(destination=f"/{name}", type="bind", source=str(source), options=("rbind", "ro"))


def _explain(message: str) -> str:
    if "hybrid mode not supported" not in message:
        return message
    left = sorted(cgroup_layout.detect().unified_controllers)
    named = f" ({', '.join(left)})" if left else ""
    mounts = "".join(f", or as root: mount -t cgroup -o {name} cgroup {MOUNT / name}" for name in left[:1])
    return (
        f"refuses a hybrid cgroup layout while version 2 has controllers{named}; use another runtime, boot with "
        f"systemd.unified_cgroup_hierarchy=1{mounts}"
    )


def _cgroup_signature() -> str:
    found = cgroup_layout.detect()
    if found.layout is Layout.V2:
        return str(found.layout)
    return f"{found.layout}:{','.join(sorted(found.v1))}:{','.join(sorted(found.unified_controllers))}"


def _load(cache: Path | None) -> dict[str, RuntimeReport]:
    if cache is None:
        return {}
    # A cache that cannot be read is no loss: the probe is made again.
    with contextlib.suppress(OSError, msgspec.DecodeError), cache.open("rb") as stream:
        return _cache_decoder.decode(stream.read(CACHE_LIMIT_BYTES))
    return {}


def _store(cache: Path, reports: dict[str, RuntimeReport]) -> None:
    temporary = cache.with_name(f".{cache.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(msgspec.json.encode(reports))
    temporary.replace(cache)
