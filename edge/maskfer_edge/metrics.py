"""The state of the run for Prometheus, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from socketserver import StreamRequestHandler
from types import TracebackType
from typing import TYPE_CHECKING, Any

from maskfer_edge.dependencies import extra
from maskfer_edge.errors import OutputError
from maskfer_edge.health import Health

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


# Within which who connects has to ask.
REQUEST_TIMEOUT_S = 10.0


class MetricsServer:
    """Serves metrics from a thread of its own, and those of the process; a context manager that frees the port.

    Attributes:
        port: The TCP port, also if port 0 left the choice to the system.
    """

    def __init__(self, health: Callable[[], Health], port: int, host: str = "127.0.0.1") -> None:
        """Begin to serve.

        Args:
            health: Gives the state of the run; called by any thread, once a scrape.
            port: TCP port; 0: any that is free.
            host: This machine's address to serve at; ``0.0.0.0``: all of them, so that others can read the metrics.

        Raises:
            OutputError: If the port is in use or there is no such address.
            DependencyError: If prometheus-client is missing.
        """
        with extra("metrics"):
            from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

        registry = CollectorRegistry()
        registry.register(HealthCollector(health))
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(
                f"metrics cannot be served at {host} port {port}: {reason}; give a free port from 1024 to 65535 "
                "and an address of this machine, e.g. 127.0.0.1"
            ) from error
        # else whoever connects and asks for nothing keeps a thread for ever, and the service has few
        base_handler: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type("Handler", (_RequestTimeout, base_handler), {})
        self.port = self._server.server_port

    def close(self) -> None:
        """Free the port, within a second; may be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _RequestTimeout(StreamRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def handle(self) -> None:
        with suppress(OSError):  # whoever leaves early is no news for the log
            super().handle()


class HealthCollector:
    """Makes metrics of a `Health`, read anew at each scrape."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; times are in seconds, as Prometheus wants them."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        health = self._health()
        yield CounterMetricFamily("maskfer_frames", "Frames processed.", health.frames)
        yield GaugeMetricFamily("maskfer_frames_per_second", "Frames processed a second, over the newest.", health.fps)
        yield GaugeMetricFamily("maskfer_faces", "Faces in the newest frame.", health.faces)
        # without a value, and so left out, before the first result
        yield GaugeMetricFamily("maskfer_result_age_seconds", "Time since the newest result.", health.frame_age_s)
        yield CounterMetricFamily(
            "maskfer_frames_dropped", "Frames of a live camera passed over for a newer one.", health.dropped
        )
        yield CounterMetricFamily("maskfer_camera_losses", "How often the camera was lost.", health.losses)
        yield GaugeMetricFamily("maskfer_camera_up", "1 while the camera gives frames, else 0.", not health.lost)

        latency = GaugeMetricFamily(
            "maskfer_latency_seconds", "What a stage took, over the newest frames.", labels=("stage", "quantile")
        )
        for stage, percentiles in health.latency_ms.items():
            latency.add_metric((stage, "0.5"), percentiles.p50 / 1000)
            latency.add_metric((stage, "0.95"), percentiles.p95 / 1000)
        yield latency

        drops = CounterMetricFamily(
            "maskfer_output_dropped", "Frames that an output was too slow for.", labels=("output",)
        )
        for output, count in health.output_drops.items():
            # a file's name need not be UTF-8, as metrics are
            drops.add_metric((output.encode(errors="replace").decode(),), count)
        yield drops

        warnings = GaugeMetricFamily(
            "maskfer_board_warning", "1 for each warning that the board gives at present.", labels=("warning",)
        )
        for warning in health.warnings:
            warnings.add_metric((warning,), 1)
        yield warnings

        put_back = GaugeMetricFamily(
            "maskfer_model_put_back", "1 for each kind of model whose newest failed on trial.", labels=("kind",)
        )
        for kind in health.put_back:
            put_back.add_metric((kind,), 1)
        yield put_back
