"""critest against one runtime: its specs, one by one, and what became of each."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.containerd_images import Images
from bench.cri_subject import Subject

WITHIN_S = 1800.0
BENCHMARKS = "benchmark"
"""What is not run, as a pattern of names: it measures, and judges nothing."""
_DIGEST = re.compile(rb"(?<=k8s-staging-cri-tools/test-image-digest@sha256:)[0-9a-f]{64}")


class _Failure(msgspec.Struct, frozen=True, rename={"message": "Message"}):
    message: str = ""


class _Spec(
    msgspec.Struct,
    frozen=True,
    rename={
        "containers": "ContainerHierarchyTexts",
        "text": "LeafNodeText",
        "kind": "LeafNodeType",
        "state": "State",
        "failure": "Failure",
        "nanoseconds": "RunTime",
    },
):
    kind: str
    state: str
    containers: list[str] | None = None
    text: str = ""
    failure: _Failure = _Failure()
    nanoseconds: int = 0


class _Suite(msgspec.Struct, frozen=True, rename={"specs": "SpecReports"}):
    specs: list[_Spec]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every spec of one run by its suite: `passed`, `skipped`, or how it failed."""

    specs: tuple[_Spec, ...]

    @property
    def failed(self) -> tuple[_Spec, ...]:
        return tuple(spec for spec in self.specs if spec.state not in ("passed", "skipped"))

    def count(self, state: str) -> int:
        return sum(spec.state == state for spec in self.specs)

    def judge(self) -> None:
        """`AssertionError` with the names of the specs that failed."""
        print(f"critest: {self.summary()}")
        assert self.specs, "no spec was run"
        assert not self.failed, "\n".join(
            ["", *(f"    {_name(spec)}: {_first_line(spec.failure.message)}" for spec in self.failed)]
        )

    def summary(self) -> str:
        return (
            f"{len(self.specs)} specs, {self.count('passed')} passed, {len(self.failed)} failed, "
            f"{self.count('skipped')} skipped"
        )

    def table(self) -> Iterator[str]:
        """The run as a table of Markdown, a row for each suite."""
        yield "| suite | specs | passed | failed | skipped |"
        yield "|---|---|---|---|---|"
        for suite in sorted({_suite(spec) for spec in self.specs}):
            own = [spec for spec in self.specs if _suite(spec) == suite]
            states = Counter("failed" if spec in self.failed else spec.state for spec in own)
            reasons = Counter(_reason(spec) for spec in own if spec.state == "skipped")
            why = "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items()))
            yield f"| {suite} | {len(own)} | {states['passed']} | {states['failed']} | {why or '0'} |"
        skipped = self.count("skipped")
        yield f"| all | {len(self.specs)} | {self.count('passed')} | {len(self.failed)} | {skipped} |"


def _suite(spec: _Spec) -> str:
    names = [name.removeprefix("[k8s.io] ") for name in spec.containers or ()]
    return names[0] if names else "?"


def _name(spec: _Spec) -> str:
    return " / ".join([*(spec.containers or ()), spec.text])


def _reason(spec: _Spec) -> str:
    return _first_line(spec.failure.message) or "not run: benchmarks judge nothing"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def run(subject: Subject, images: Images, *, focus: str = "", options: tuple[str, ...] = ()) -> Report:
    """Run the specs whose name has `focus` (a regular expression); needs a registry that has `images`.

    One image is named by its publisher's digest, which no stand-in has: a copy of the program names the stand-in's.
    """
    base = subject.runtime.places.base
    if subject.runtime.tools.critest is None:
        raise RuntimeError("there is no critest in the folder of binaries")
    endpoint = f"unix://{subject.runtime.places.socket}"
    report = base / "critest.json"
    report.unlink(missing_ok=True)
    binary = _with_digest(subject.runtime.tools.critest, base / "critest", images.digested)
    command = [str(binary), "--config", "/dev/null", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint]
    command += ["--runtime-handler", subject.handler, f"--ginkgo.skip={BENCHMARKS}", "--ginkgo.no-color"]
    command += [f"--ginkgo.json-report={report}", *([f"--ginkgo.focus={focus}"] if focus else ()), *options]
    segments = _segments()
    with (base / "critest.log").open("ab") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=WITHIN_S, cwd=base)
    for segment in _segments() - segments:  # its specs make them and leave them
        subprocess.run(["ipcrm", "-m", segment], check=False, capture_output=True)
    if not report.is_file():
        tail = (base / "critest.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"critest wrote no report; it said:\n{tail}")
    suites = msgspec.json.decode(report.read_bytes(), type=list[_Suite])
    specs = tuple(
        spec
        for suite in suites
        for spec in suite.specs
        if spec.kind == "It" and (not focus or spec.state != "skipped" or spec.failure.message)
    )
    return Report(specs=specs)


def _with_digest(binary: Path, target: Path, digest: str) -> Path:
    program, changed = _DIGEST.subn(digest.removeprefix("sha256:").encode(), binary.read_bytes())
    if changed != 1:
        raise RuntimeError(f"{binary}: names the image by digest {changed} times, and not once: it is another critest")
    target.write_bytes(program)
    target.chmod(0o755)
    return target


def _segments() -> set[str]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines}
