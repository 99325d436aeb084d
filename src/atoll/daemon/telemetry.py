"""What is told of the daemon's operations beside its answers: metrics, traces, lines of the log."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from atoll.daemon import telemetry_logs
from atoll.daemon.telemetry_http import Endpoint
from atoll.daemon.telemetry_metrics import Metrics
from atoll.engine.engine import Engine


@asynccontextmanager
async def observed(engine: Engine) -> AsyncGenerator[None]:
    """As the configuration wants it, inside; what it does not want costs nothing.

    Raises `FailedPrecondition` for an address that cannot be listened on, and for traces without OpenTelemetry.
    """
    config = engine.parts.config
    async with AsyncExitStack() as stack:
        if config.log_format == "json":
            engine.parts.stories.tap(telemetry_logs.write)
        if config.telemetry.endpoint:
            from atoll.daemon.telemetry_traces import Traces  # noqa: PLC0415  an optional extra, and slow to import

            traces = Traces(config.telemetry, engine.parts.paths.instance)
            stack.push_async_callback(engine.parts.blocking.run, traces.close)
            engine.parts.stories.tap(traces.write)
        if config.metrics.address:
            endpoint = Endpoint(config.metrics.address, Metrics(engine).text)
            stack.push_async_callback(endpoint.aclose)
            await endpoint.start()
        yield
