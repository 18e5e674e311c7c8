"""The figures of a run for those who collect metrics while it goes on: Prometheus asks, OTLP is told."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer
from prometheus_client import make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from kservekit.errors import CannotStart
from kservekit.loadtest.figures import BOUNDS_S, COUNTER, Figure, Histogram, figures
from kservekit.loadtest.options import Options
from kservekit.loadtest.session import Session

EVERY_S = 5.0

UNITS = {"s": "seconds", "1": "ratio"}
"""Which are part of a metric's name in Prometheus."""


class Publisher(Collector):
    """Of the session that it is given, until it is given the next. CannotStart where a port is taken."""

    def __init__(self, options: Options) -> None:
        self.session: Session | None = None
        self._server = _endpoint(options.metrics_port, self) if options.metrics_port is not None else None
        self._otlp = _Otlp(options.otlp) if options.otlp else None
        self._greenlet = gevent.spawn(self._keep_telling) if self._otlp else None

    def collect(self) -> Iterator[Metric]:
        """Prometheus asks."""
        if self.session is not None:
            found, latency = _figures(self.session)
            yield from map(_family, found)
            yield _histogram_family(latency)

    def tell(self) -> None:
        """OTLP is told, which the end of a run must not wait for."""
        if self.session is not None and self._otlp is not None:
            self._otlp.export(self.session)

    def close(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
        self.tell()
        if self._otlp is not None:
            self._otlp.close()
        if self._server is not None:
            self._server.stop()

    def _keep_telling(self) -> None:
        while True:
            gevent.sleep(EVERY_S)
            self.tell()


def _figures(session: Session) -> tuple[list[Figure], Histogram]:
    target = session.wire.target
    labels = {"model": target.model, "wire": target.wire}
    return figures(session.recorder, labels, in_flight=session.in_flight, busy=session.busy)


def _endpoint(port: int, collector: Collector) -> WSGIServer:
    registry = CollectorRegistry()
    registry.register(collector)
    server = WSGIServer(("", port), make_wsgi_app(registry), log=None)
    try:
        server.start()
    except OSError as error:
        raise CannotStart(f"--metrics-port is {port}: {error.strerror}; give another") from None
    return server


def _family(figure: Figure) -> Metric:
    names = list(figure.points[0][0]) if figure.points else []
    kind = CounterMetricFamily if figure.kind == COUNTER else GaugeMetricFamily
    name = "_".join(filter(None, [figure.name, UNITS.get(figure.unit, "")]))
    family: Any = kind(name, figure.what, labels=names)
    for labels, value in figure.points:
        family.add_metric(list(labels.values()), value)
    return family  # type: ignore[no-any-return]


def _histogram_family(latency: Histogram) -> Metric:
    names = list(latency.points[0][0]) if latency.points else []
    family = HistogramMetricFamily(f"{latency.name}_seconds", latency.what, labels=names)
    for labels, found in latency.points:
        bounds = (*map(str, BOUNDS_S), "+Inf")
        family.add_metric(list(labels.values()), [*zip(bounds, accumulate(found.counts), strict=True)], found.sum_s)
    return family


class _Otlp:
    def __init__(self, url: str) -> None:
        from grpc.experimental import gevent as grpc_gevent

        grpc_gevent.init_gevent()
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.resources import Resource

        self._exporter = OTLPMetricExporter(url, timeout=2)
        instance = {"service.instance.id": f"{platform.node()}-{os.getpid()}"}
        self._resource = Resource.create({"service.name": "kservekit-loadtest", **instance})

    def export(self, session: Session) -> None:
        """A receiver that is not there costs a line in the log, and the run nothing."""
        from kservekit.loadtest.otlp import metrics_data

        found, latency = _figures(session)
        self._exporter.export(metrics_data(found, latency, self._resource, begun_s=session.started.timestamp()))

    def close(self) -> None:
        self._exporter.shutdown()
