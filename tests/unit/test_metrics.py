"""Counting, and how it is written down."""

from __future__ import annotations

import re

import pytest

from jfsd.metrics import (
    DURATION_BOUNDS_S,
    CacheCounts,
    Family,
    Histogram,
    Histograms,
    counts,
    flat,
    one,
    prometheus_text,
)

pytestmark = pytest.mark.promise(20)
SAMPLE = re.compile(r'[a-z_]+\{([a-z_]+="(\\.|[^"\\])*"(,[a-z_]+="(\\.|[^"\\])*")*)?\} [0-9.e+-]+')


def test_a_histogram_counts_values_by_their_upper_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.5, 9):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 2]
    assert (histogram.count, histogram.sum) == (5, 14.5)


def test_bounds_are_those_of_the_reference():
    """Histograms of both can be added up only if they are cut alike."""
    assert DURATION_BOUNDS_S[:3] == pytest.approx((0.0001, 0.00015, 0.000225))
    assert len(DURATION_BOUNDS_S) == 30
    assert DURATION_BOUNDS_S[-1] == pytest.approx(12.78, abs=0.01)


def test_histograms_come_to_be_when_they_are_used_and_add_up():
    by_method = Histograms()
    by_method["a"].observe(0.1)
    by_method["b"].observe(100)
    by_method["a"].observe(0.2)
    total = by_method.total()
    assert set(by_method) == {"a", "b"}
    assert (total.count, by_method["a"].count) == (3, 2)
    assert total.sum == pytest.approx(100.3)
    assert total.counts[-1] == 1
    assert Histograms().total().count == 0


def test_the_cache_is_counted_in_blocks_and_bytes():
    cache = CacheCounts()
    cache.hit(10)
    cache.hit(5)
    cache.miss(7)
    cache.write(3)
    assert (cache.hits, cache.hit_bytes, cache.misses, cache.miss_bytes) == (2, 15, 1, 7)
    assert (cache.writes, cache.write_bytes) == (1, 3)


def test_prometheus_gets_cumulative_buckets_and_escaped_labels():
    histogram = Histogram((0.5, 1.0))
    histogram.observe(0.7)
    histogram.observe(3)
    text = prometheus_text(
        [
            one("up", "gauge", "Is it up.", 1),
            counts("errs", "Errors.", "errno", {2: 5}, lambda number: f"E{number}"),
            Family("took", "histogram", "Time.", {"a": histogram}, "method"),
        ],
        {"mp": '/m/"x"\n\\'},
    )
    lines = text.splitlines()
    common = 'mp="/m/\\"x\\"\\n\\\\"'
    assert lines[:3] == ["# HELP up Is it up.", "# TYPE up gauge", f"up{{{common}}} 1"]
    assert f'errs{{errno="E2",{common}}} 5' in lines
    assert lines[-5:] == [
        f'took_bucket{{method="a",{common},le="0.5"}} 0',
        f'took_bucket{{method="a",{common},le="1"}} 1',
        f'took_bucket{{method="a",{common},le="+Inf"}} 2',
        f'took_sum{{method="a",{common}}} 3.7',
        f'took_count{{method="a",{common}}} 2',
    ]
    assert all(SAMPLE.fullmatch(line) for line in lines if not line.startswith("#"))
    assert text.endswith("\n")


def test_a_family_without_samples_is_still_described():
    assert prometheus_text([Family("none", "counter", "Nothing yet.")], {}).splitlines() == [
        "# HELP none Nothing yet.",
        "# TYPE none counter",
    ]


def test_flat_names_are_those_of_the_reference():
    histogram = Histogram()
    histogram.observe(0.25)
    families = [
        one("up", "gauge", "", 1),
        Family("took", "histogram", "", {"GET": histogram}, "method"),
    ]
    assert flat(families) == {"up": 1, "took_GET_total": 1, "took_GET_sum": 0.25}
