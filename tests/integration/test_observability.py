"""Metrics, traces and the JSON log of a real daemon, read by those who would read them."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families as parse

import atoll
from atoll.api import cri_runtime_v1_pb2 as pb
from tests.integration.daemons import Daemon, Roots

IMAGE = "atoll/busybox"
PATIENCE_S = 30.0
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{CALLER}-01"


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP on a loopback port."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[ExportTraceServiceRequest] = []

    def spans(self) -> list[Span]:
        scopes = (scope for one in self.requests for found in one.resource_spans for scope in found.scope_spans)
        return [span for scope in scopes for span in scope.spans]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Collector  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest has the output."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Unix(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("atoll", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextmanager
def watched(roots: Roots, collector: Collector) -> Iterator[Daemon]:
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    roots.write_config('log_format = "json"')
    with roots.config.open("a") as file:
        file.write(f'[metrics]\naddress = "{roots.state}/metrics.sock"\n[telemetry]\nendpoint = "{endpoint}"\n')
    daemon = Daemon(roots)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.kill()


def scrape(roots: Roots) -> dict[tuple[str, ...], float]:
    """Each sample by its name and its labels' values, in the order of their names."""
    connection = Unix(f"{roots.state}/metrics.sock")
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    samples = (sample for family in parse(text) for sample in family.samples)
    return {(one.name, *(one.labels[key] for key in sorted(one.labels))): one.value for one in samples}


async def use(roots: Roots) -> tuple[str, str]:
    """A pod's whole life with each thing that is counted; its ID and its container's."""
    async with atoll.connect(roots.socket, start=False) as client:
        async with await client.run_pod("watched", network="none") as pod:
            container = await pod.run(IMAGE, ["sleep", "1000"])
            assert (await container.exec(["true"])).exit_code == 0
            assert (await container.exec(["sleep", "1000"], timeout=0.2)).exit_code != 0
            await client.pull(IMAGE)
            await client.fsck()
            now = await asyncio.to_thread(scrape, roots)
            assert now["atoll_pods", "ready"] == now["atoll_containers", "running"] == 1
            assert now["atoll_ledger_entries", "cgroup"] >= 1
        return pod.id, container.id


def test_one_life_in_metrics_traces_and_lines(roots: Roots, collector: Collector) -> None:
    with watched(roots, collector) as daemon:
        before = scrape(roots)
        assert before["atoll_pods", "ready"] == 0
        assert "atoll_fsck_findings" not in {name for name, *_ in before}
        pod_id, container_id = asyncio.run(use(roots))
        after = scrape(roots)
        assert daemon.stop() == 0  # which sends the spans that wait
    lines = [json.loads(line) for line in roots.log.read_text().splitlines()]
    _require_metrics(after)
    _require_spans(collector.spans(), pod_id, container_id)
    _require_lines(lines, pod_id, container_id)


def _require_metrics(after: dict[tuple[str, ...], float]) -> None:
    for operation, of in (("run", "pod"), ("remove", "pod"), ("create", "container"), ("start", "container")):
        assert after["atoll_operation_duration_seconds_count", of, operation, "ok"] == 1
    assert after["atoll_phase_duration_seconds_count", "pod", "run", "start sandbox"] == 1
    assert after["atoll_phase_duration_seconds_bucket", "+Inf", "container", "start", "start task"] == 1
    assert 0 < after["atoll_phase_duration_seconds_sum", "pod", "run", "create sandbox"] < PATIENCE_S
    assert after["atoll_exec_duration_seconds_count", "exited"] == 1
    assert after["atoll_exec_duration_seconds_count", "timed out"] == 1
    assert after["atoll_image_pull_duration_seconds_count", "ok"] >= 1
    assert after["atoll_image_pulled_bytes_total",] == 0  # it is built in
    assert {after["atoll_events_total", one] for one in ("created", "started", "stopped", "deleted")} == {2}
    assert (
        after["atoll_fsck_findings", "any"] == after["atoll_pods", "ready"] == after["atoll_containers", "running"] == 0
    )
    assert after["atoll_fsck_last_run_timestamp_seconds",] == pytest.approx(time.time(), abs=300)
    assert sum(value for (name, *_), value in after.items() if name == "atoll_ledger_debts") == 0
    assert after["atoll_quarantined_records", "none"] == 0
    assert after["atoll_event_readers_dropped_total", "cri"] == 0
    (build,) = (labels for name, *labels in after if name == "atoll_build_info")
    assert atoll.__version__ in build
    assert 0 < after["process_cpu_seconds_total",] < 600
    assert after["process_resident_memory_bytes",] > 1 << 20


def _require_spans(spans: list[Span], pod_id: str, container_id: str) -> None:
    assert len({one.span_id for one in spans}) == len(spans)
    attributes = {one.span_id: {item.key: item.value.string_value for item in one.attributes} for one in spans}
    of = {(one.name, attributes[one.span_id].get("container.id", "")): one for one in spans if not one.parent_span_id}
    run, start = of["run pod", ""], of["start container", container_id]
    assert attributes[run.span_id]["atoll.pod.id"] == attributes[start.span_id]["atoll.pod.id"] == pod_id
    phases = [one for one in spans if one.parent_span_id == run.span_id]
    assert {"record", "files", "create sandbox", "start sandbox", "commit"} <= {one.name for one in phases}
    for phase in phases:
        assert phase.trace_id == run.trace_id
        assert run.start_time_unix_nano <= phase.start_time_unix_nano <= phase.end_time_unix_nano
        assert phase.end_time_unix_nano <= run.end_time_unix_nano + 1_000_000
    assert run.status.code == Status.STATUS_CODE_UNSET


def _require_lines(lines: list[dict[str, object]], pod_id: str, container_id: str) -> None:
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    told = [line for line in lines if line.get("pod") == pod_id and line["logger"] == "atoll.operations"]
    by = {(line["operation"], line.get("container", "")): line for line in told}
    assert (by["run", ""]["outcome"], by["remove", ""]["outcome"]) == ("ok", "ok")
    assert by["start", container_id]["outcome"] == "ok"
    again = [line["message"] for line in lines if line["logger"] == "atoll.engine.pods"]
    assert not [message for message in again if " run: " in str(message) or " removed: " in str(message)]
    assert sorted(str(line["outcome"]) for line in told if line["operation"] == "exec") == ["exited", "timed out"]
    assert all(float(str(line["duration_ms"])) > 0 for line in told)


def on_host() -> pb.PodSandboxConfig:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="traced", namespace="x", uid="1"))
    config.linux.security_context.namespace_options.network = pb.NODE
    return config


def encode(message: Message) -> bytes:
    return message.SerializeToString()


def call(roots: Roots, verb: str, request: Message, trace_parent: str) -> pb.RunPodSandboxResponse:
    """An RPC on a pod, in a trace; the answers of all have the fields of one or none."""
    with grpc.insecure_channel(f"unix:{roots.socket}") as channel:
        method = channel.unary_unary(
            f"/runtime.v1.RuntimeService/{verb}PodSandbox",
            request_serializer=encode,
            response_deserializer=pb.RunPodSandboxResponse.FromString,
        )
        return method(request, metadata=(("traceparent", trace_parent),), timeout=PATIENCE_S)


def test_a_callers_trace_has_its_operations_and_their_failures(roots: Roots, collector: Collector) -> None:
    with watched(roots, collector) as daemon:
        pod_id = call(roots, "Run", pb.RunPodSandboxRequest(config=on_host()), SAMPLED).pod_sandbox_id
        call(roots, "Stop", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), f"00-{TRACE}-{CALLER}-00")
        call(roots, "Remove", pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), "not a trace")
        assert daemon.stop() == 0
    by_name = {one.name: one for one in collector.spans()}
    run = by_name["run pod"]
    assert (run.trace_id.hex(), run.parent_span_id.hex(), run.kind) == (TRACE, CALLER, Span.SPAN_KIND_SERVER)
    assert "stop pod" not in by_name  # its caller does not sample it
    assert by_name["remove pod"].trace_id.hex() != TRACE


def test_a_collector_that_is_away_holds_up_nothing(roots: Roots, collector: Collector) -> None:
    with watched(roots, collector) as daemon:
        collector.shutdown()
        collector.server_close()
        pod_id = call(roots, "Run", pb.RunPodSandboxRequest(config=on_host()), SAMPLED).pod_sandbox_id
        call(roots, "Remove", pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), SAMPLED)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 14
        assert pod_id in roots.log.read_text()
