"""Sizes, times and rates as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.config.units import (
    MAX_BYTES,
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_mbps,
    parse_seconds,
    show_bytes,
)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("0", "", 0),
        ("4096", "", 4096),
        ("300M", "", 300 << 20),
        ("300", "M", 300 << 20),
        ("4096B", "M", 4096),
        ("4MiB", "", 4 << 20),
        ("4mb", "", 4 << 20),
        ("1.5G", "", 3 << 29),
        ("0.5K", "", 512),
        (" 1 T ", "", 1 << 40),
        ("9223372036854775807", "", MAX_BYTES),
    ],
)
def test_a_size_is_binary_and_a_bare_number_takes_the_flags_unit(text, unit, expected):
    assert parse_bytes(text, unit) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "1X",
        "1 000",
        "1e3",
        "0x10",
        "\u0661",
        "1..5M",
        "0.3B",
        "1.0001K",
        "16E",
        "8388608T",
    ],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"^is "):
        parse_bytes(text)


@given(st.integers(0, MAX_BYTES))
def test_a_formatted_size_reads_back_as_the_same(size):
    assert parse_bytes(format_bytes(size), "G") == size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (300 << 20, "300M"), (1000, "1000B"), (1 << 40, "1T")]
)
def test_a_size_is_formatted_in_its_largest_exact_unit(size, text):
    assert format_bytes(size) == text


def test_a_size_is_shown_rounded():
    assert [show_bytes(n) for n in (7, 3_565_158, 1 << 60)] == ["7 B", "3.4 MiB", "1024.0 PiB"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("20us", 20e-6),
        ("1m30s", 90),
        ("1h", 3600),
        ("2d", 172800),
        ("1.5h", 5400),
    ],
)
def test_a_time_is_in_seconds_unless_it_says_otherwise(text, expected):
    assert parse_seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1", "-1s", "1x", "1s2", "1 s", "1m30", "1e3", "\u0661", "nan", "inf", "1h-1s"],
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"^is not a time"):
        parse_seconds(text)


@given(st.integers(0, 10**6))
def test_a_formatted_time_reads_back_as_the_same(milliseconds):
    seconds = milliseconds / 1000
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("100", 100), ("1G", 1000), ("1.5g", 1500)]
)
def test_a_bandwidth_is_decimal_and_in_megabits(text, expected):
    assert parse_mbps(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "100k", "0.5"])
def test_what_is_no_bandwidth_is_refused(text):
    with pytest.raises(ValueError, match=r"^is not a "):
        parse_mbps(text)
