"""Helpers that misbehave on cue: programs in front of the real ones, and a daemon whose bounds are short.

A word `sick-<verb>-<mode>` that reaches the program (in the container's spec, the exec's process, the pod's name, the
image's) makes that call misbehave; so cells of a table run beside each other. The file `well` heals all of them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.integration.conftest import Roots

MODES = ("hang", "idle", "garbage", "flood", "keep", "die")
"""Never ends; ends with 0 and has done nothing; prints nonsense, or without end; leaves a child; dies by a signal."""
KEPT_S = 3
MISBEHAVE = f"""
misbehave() {{
  case "$1" in
    hang) exec sleep 600;;
    idle) exit 0;;
    garbage) echo 'nonsense \\033[31m {{"x' ; echo '}}}}]' >&2; exit 0;;
    flood) if [ -n "$LOG" ]; then exec cat /dev/zero > "$LOG"; else exec cat /dev/zero; fi;;
    keep) sleep {KEPT_S} & ;;
    die) kill -9 $$;;
  esac
}}
"""
BOUNDS = """
import sys

if any("atoll" in one for one in sys.orig_argv):
    import atoll.network.cni as cni
    import atoll.oci.runtime as oci
    import atoll.runtime.binary as binary

    for name in ("CREATE", "START", "EXEC", "DELETE", "KILL", "QUERY"):
        setattr(oci, f"{name}_TIMEOUT_S", 3.0)
    binary.START_TIMEOUT_S = binary.DELETE_TIMEOUT_S = 3.0
    cni.PLUGIN_TIMEOUT_S = 3.0
"""


@dataclass(frozen=True, slots=True)
class Helpers:
    """The folder of the programs, and the environment for a daemon that is to use them."""

    folder: Path
    roots: Roots

    @classmethod
    def make(cls, roots: Roots) -> Helpers:
        folder = roots.base / "helpers"
        (folder / "python").mkdir(parents=True)
        (folder / "python" / "sitecustomize.py").write_text(BOUNDS)
        return cls(folder, roots)

    def environment(self) -> dict[str, str]:
        path = [str(self.folder / "python"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PATH": os.pathsep.join((str(self.folder), os.environ["PATH"])),
        }

    def heal(self) -> None:
        """From now on all of them are well."""
        (self.folder / "well").touch()

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nLOG=\n{MISBEHAVE}\n{text}")
        path.chmod(0o755)
        return path

    def oci(self) -> Path:
        """In front of crun: create and delete by the container's spec, exec by its process."""
        return self._write(
            "crun",
            f"""
[ -e {self.folder}/well ] && exec {_real("crun")} "$@"
verb= ; where= ; last=
for word; do
  case "$last" in --log) LOG=$word;; --process) where=$word;; --bundle) where=$word/config.json;; esac
  case "$word" in create|exec|delete) [ -z "$verb" ] && verb=$word;; esac
  last=$word
done
if [ -n "$verb" ]; then
  [ "$verb" = delete ] && where={self.roots.state}/bundles/$last/config.json
  [ "$verb" = delete ] && LOG=
  mode=$(grep -ao "sick-$verb-[a-z]*" "$where" 2>/dev/null | head -n 1)
  misbehave "${{mode##*-}}"
fi
exec {_real("crun")} "$@"
""",
        )

    def cni(self) -> None:
        """A plugin behind the bridge, which passes the result on; by the pod's name."""
        folder = self.roots.base / "bin"
        folder.mkdir(exist_ok=True)
        path = self._write(
            "sick-plugin",
            f"""
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}}'; exit 0
fi
verb=$(echo "$CNI_COMMAND" | tr A-Z a-z)
mode=$(echo "$CNI_ARGS" | grep -ao "sick-$verb-[a-z]*" | head -n 1)
[ -e {self.folder}/well ] || misbehave "${{mode##*-}}"
cat > /dev/null
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion":"1.0.0","interfaces":[],"ips":[{{"address":"192.0.2.78/32"}}]}}'
exit 0
""",
        )
        path.rename(folder / "sick-plugin")
        (conflist,) = self.roots.conf_dir.glob("*.conflist")
        network = json.loads(conflist.read_text())
        network["plugins"].append({"type": "sick-plugin"})
        conflist.write_text(json.dumps(network))

    def skopeo(self) -> None:
        """By the image's name."""
        self._write(
            "skopeo",
            f"""
mode=$(echo "$*" | grep -ao "sick-inspect-[a-z]*" | head -n 1)
[ -e {self.folder}/well ] || misbehave "${{mode##*-}}"
exec {_real("skopeo")} "$@"
""",
        )

    def shim(self) -> Path:
        """In front of containerd's shim: its calls `start` and `delete`, by the spec in its bundle."""
        real = _real("containerd-shim-runc-v2")
        return self._write(
            "containerd-shim-sick-v2",
            f"""
for verb; do :; done
mode=$(grep -aoh "sick-$verb-[a-z]*" config.json 2>/dev/null | head -n 1)
[ -e {self.folder}/well ] || misbehave "${{mode##*-}}"
exec {real} "$@"
""",
        )


def _real(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, name
    return found
