"""The result of a run: as JSON, as a table for people, and as the page docs/benchmarks.md between its markers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from bench import crowd, programs, sandbox_api, sdk, standing, timing
from bench.costs import STAGES, Calls, Memory
from bench.sandbox_api import Sandboxes
from bench.standing import Standing
from bench.timing import Samples, Throughput

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BASE = "containerd"
TABLES, SANDBOX, SOAK, SDK = "tables", "sandbox", "soak", "sdk"
"""The parts of the page that are replaced, each between its two markers."""
ROWS = (
    timing.RUN,
    timing.CREATE,
    timing.START,
    timing.CREATE_START,
    timing.EXEC,
    timing.STOP,
    timing.REMOVE,
    timing.STOP_POD,
    timing.REMOVE_POD,
    timing.TAKE_DOWN,
    timing.GONE,
)
AIMS = {timing.RUN: 1 / 5, timing.CREATE_START: 1 / 2, timing.EXEC: 1 / 2, timing.TAKE_DOWN: 1 / 3}
MEMORY_AIM = 0.6


@dataclass(slots=True, kw_only=True)
class Result:
    """All that one run has measured; what was not asked for is empty."""

    at: str
    machine: dict[str, str]
    load_before: tuple[float, float, float]
    load_after: tuple[float, float, float] = (0.0, 0.0, 0.0)
    commit: str = ""
    n: int = 0
    latencies: dict[str, Samples] = field(default_factory=dict[str, Samples])
    throughput: dict[int, dict[str, list[Throughput]]] = field(default_factory=dict[int, dict[str, list[Throughput]]])
    memory: dict[str, list[Memory]] = field(default_factory=dict[str, list[Memory]])
    memory_pods: int = 0
    cpu: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    calls: dict[str, dict[str, Calls]] = field(default_factory=dict[str, dict[str, Calls]])
    calls_pods: int = 0
    sandbox_api: Sandboxes | None = None
    crowd: dict[int, Samples] = field(default_factory=dict[int, Samples])
    standing: Standing | None = None
    sdk: sdk.Times = field(default_factory=dict[str, dict[str, list[float]]])
    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    """MB a second of what streams, by row and contestant."""

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2)


def markdown(result: Result) -> str:
    """Every table of the result that has something in it."""
    parts = [_heading(result)]
    if "main" in result.latencies:
        parts.append(_latency_table(result.latencies["main"], "Latency, ms", ROWS))
    if "programs" in result.latencies:
        parts.append(programs.table(result.latencies["programs"]))
    for name, title in (("pool", "With the pool of ready networks, ms"), ("host", "Pods on the host's network, ms")):
        if name in result.latencies:
            parts.append(
                _latency_table(result.latencies[name], title, (timing.RUN, timing.STOP_POD, timing.REMOVE_POD))
            )
    if result.throughput:
        parts.append(_throughput_table(result.throughput))
    parts += _cri_tables(result)
    if result.memory:
        parts.append(_memory_table(result.memory, result.memory_pods))
    if result.cpu:
        parts.append(_cpu_table(result.cpu))
    if result.calls:
        parts.append(_calls_table(result.calls, result.calls_pods))
    return "\n\n".join(parts) + "\n"


def _cri_tables(result: Result) -> list[str]:
    found: list[str] = []
    if result.crowd:
        found.append(crowd.table(result.crowd, BASE))
    if result.rates:
        found.append(_rates_table(result.rates))
    if result.standing is not None:
        found.append(standing.table(result.standing, BASE))
    return found


def sandbox_markdown(result: Result) -> str:
    """The tables of the sandbox API, which have a place of their own; nothing where it was not asked for."""
    if result.sandbox_api is None:
        return ""
    return f"{_heading(result)}\n\n{sandbox_api.table(result.sandbox_api)}\n"


def sdk_markdown(result: Result) -> str:
    """The table of the SDK beside podman, which has a place of its own; nothing where it was not measured."""
    return f"{_heading(result)}\n\n{sdk.table(result.sdk)}\n" if result.sdk else ""


def _heading(result: Result) -> str:
    machine = "; ".join(f"{key} {value}" for key, value in result.machine.items() if value)
    loads = " to ".join(" ".join(f"{one:.1f}" for one in load) for load in (result.load_before, result.load_after))
    return (
        f"{result.at}, commit {result.commit or 'unknown'}; {machine}; load average (1, 5, 15 min) {loads}. "
        f"n = {result.n} where a table says no other."
    )


def _latency_table(samples: Samples, title: str, rows: Sequence[str]) -> str:
    present = [row for row in rows if row in samples.ms]
    names = list(next(iter(samples.ms.values())))
    others = [name for name in names if name != BASE]
    n = len(samples.ms[present[0]][BASE])
    has_aims = "main" in title or len(rows) > 3
    head = ["call", f"{BASE} p50 / p99", *(f"{name} p50 / p99 | ratio" for name in others)]
    lines = [f"### {title} (n = {n} each)", "", _row([*head, *(["aim"] if has_aims else [])])]
    lines.append(_rule(lines[-1]))
    for row in present:
        base = samples.ms[row][BASE]
        cells = [row, _pair(base)]
        for name in others:
            own = samples.ms[row][name]
            cells.append(f"{_pair(own)} | {_ratio(timing.median(own), timing.median(base))}")
        lines.append(_row([*cells, *([_aim(AIMS.get(row))] if has_aims else [])]))
    return "\n".join(lines)


def _throughput_table(found: Mapping[int, Mapping[str, Sequence[Throughput]]]) -> str:
    names = list(next(iter(found.values())))
    others = [name for name in names if name != BASE]
    lines = [
        "### Pods a second, each with a container; down ends when no network is held any more (medians of blocks)",
        "",
        _row(["callers, direction", BASE, *(f"{name} | ratio" for name in others)]),
    ]
    lines.append(_rule(lines[-1]))
    for callers, by_name in found.items():
        for what, label in (("up", "up"), ("down", "down"), ("both", "up and down")):
            base = statistics.median(getattr(one, what) for one in by_name[BASE])
            cells = [f"{callers}, {label}", f"{base:.1f}"]
            for name in others:
                own = statistics.median(getattr(one, what) for one in by_name[name])
                cells.append(f"{own:.1f} | {_ratio(own, base)}")
            lines.append(_row(cells))
    return "\n".join(lines)


def _rates_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    names = list(next(iter(found.values())))
    others = [name for name in names if name != BASE]
    lines = [
        "### Throughput, MB a second (medians; more is better)",
        "",
        _row(["what", BASE, *(f"{name} | ratio" for name in others), "aim"]),
    ]
    lines.append(_rule(lines[-1]))
    for label, by_name in found.items():
        base = statistics.median(by_name[BASE])
        cells = [f"{label} (n = {len(by_name[BASE])})", f"{base:.0f}"]
        for name in others:
            own = statistics.median(by_name[name]) if name in by_name else 0.0
            cells.append(f"{own:.0f} | {_ratio(own, base)}" if own else "- | -")
        lines.append(_row([*cells, "1.00"]))
    return "\n".join(lines)


def _memory_table(found: Mapping[str, Sequence[Memory]], pods: int) -> str:
    names = list(found)
    times = len(next(iter(found.values())))
    others = [name for name in names if name != BASE]
    lines = [
        f"### Memory, KiB a pod of one container ({pods} pods at once, medians of {times})",
        "",
        _row(["what", BASE, *(f"{name} | ratio" for name in others), "aim"]),
    ]
    lines.append(_rule(lines[-1]))
    rows = {
        "MemAvailable": lambda one: one.available,
        "PSS, all processes": lambda one: one.pss,
        "PSS, shims": lambda one: one.pss_shims,
        "PSS, pause and container": lambda one: one.pss_rest,
        "daemon RSS without pods (whole)": lambda one: one.daemon_rss_before,
        "daemon RSS with them (whole)": lambda one: one.daemon_rss_with,
    }
    for label, of in rows.items():
        if any(of(one) <= 0 for values in found.values() for one in values):
            # Others freed or took memory meanwhile: the whole machine's figure then says nothing of the pods.
            lines.append(_row([label, "unsteady", *(["unsteady | -"] * len(others)), ""]))
            continue
        base = statistics.median(of(one) for one in found[BASE])
        cells = [label, f"{base:,.0f}"]
        for name in others:
            own = statistics.median(of(one) for one in found[name])
            cells.append(f"{own:,.0f} | {_ratio(own, base)}")
        lines.append(_row([*cells, _aim(MEMORY_AIM if label == "MemAvailable" else None)]))
    return "\n".join(lines)


def _cpu_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    others = [name for name in found if name != BASE]
    pods = len(found[BASE][STAGES[0]])
    lines = [
        f"### CPU ms of the daemon and all that it executes (n = {pods}, medians)",
        "",
        _row(["stage", BASE, *(f"{name} | ratio" for name in others)]),
    ]
    lines.append(_rule(lines[-1]))
    whole = {name: [sum(values) for values in zip(*stages.values(), strict=True)] for name, stages in found.items()}
    for stage in (*STAGES, "whole life"):
        values = {name: timing.median(whole[name] if stage == "whole life" else found[name][stage]) for name in found}
        cells = [stage, f"{values[BASE]:.1f}"]
        cells += [f"{values[name]:.1f} | {_ratio(values[name], values[BASE])}" for name in others]
        lines.append(_row(cells))
    return "\n".join(lines)


def _calls_table(found: Mapping[str, Mapping[str, Calls]], pods: int) -> str:
    names = list(found)
    lines = [
        f"### A pod's fsyncs / programs executed / processes started (strace, apart; medians of {pods} pods)",
        "",
        _row(["stage", *names]),
    ]
    lines.append(_rule(lines[-1]))
    lines += [_row([stage, *(_calls(found[name][stage]) for name in names)]) for stage in STAGES]
    total = [
        Calls(**{kind: sum(getattr(one, kind) for one in found[name].values()) for kind in Calls.__slots__})
        for name in names
    ]
    lines.append(_row(["whole life", *(_calls(one) for one in total)]))
    return "\n".join(lines)


def _calls(one: Calls) -> str:
    return f"{one.fsyncs:g} / {one.programs:g} / {one.processes:g}"


def _pair(values: Sequence[float]) -> str:
    return f"{timing.median(values):.1f} / {timing.percentile(values, 0.99):.1f}"


def _ratio(own: float, base: float) -> str:
    return f"{own / base:.2f}" if base else "-"


def _aim(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(head: str) -> str:
    columns = head.count("|") - 1
    return "|---|" + "---:|" * (columns - 1)


def write_page(path: Path, part: str, text: str) -> None:
    """Put `text` between the markers of a part of the page; the rest of it stays as it is."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{path}: has no markers {begin!r} and {end!r}")
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
