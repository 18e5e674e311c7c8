"""Figures as OpenTelemetry's SDK has them. An instrument of its own would count each request; here they are counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as OtelHistogram
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from kservekit import __version__
from kservekit.loadtest.figures import BOUNDS_S, COUNTER, Figure, Histogram

SINCE_THE_BEGINNING = AggregationTemporality.CUMULATIVE


def metrics_data(figures: Sequence[Figure], latency: Histogram, resource: Resource, *, begun_s: float) -> MetricsData:
    """`begun_s`: since 1970."""
    begun, now = int(begun_s * 1e9), time.time_ns()

    def points(figure: Figure) -> list[NumberDataPoint]:
        return [NumberDataPoint(labels, begun, now, value) for labels, value in figure.points]

    metrics = [
        Metric(
            figure.name,
            figure.what,
            figure.unit,
            Sum(points(figure), SINCE_THE_BEGINNING, True) if figure.kind == COUNTER else Gauge(points(figure)),
        )
        for figure in figures
        if figure.points
    ]
    buckets = [
        HistogramDataPoint(
            attributes=labels,
            start_time_unix_nano=begun,
            time_unix_nano=now,
            count=sum(found.counts),
            sum=found.sum_s,
            bucket_counts=found.counts,
            explicit_bounds=BOUNDS_S,
            min=found.low_s,
            max=found.high_s,
        )
        for labels, found in latency.points
    ]
    if buckets:
        metrics.append(Metric(latency.name, latency.what, "s", OtelHistogram(buckets, SINCE_THE_BEGINNING)))
    scope = ScopeMetrics(InstrumentationScope("kservekit.loadtest", __version__), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])
