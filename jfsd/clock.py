"""The daemon's clocks: wall time for records, monotonic time for durations."""

from __future__ import annotations

import time

now_ns = time.time_ns
"""Wall clock in nanoseconds; clients of one volume must agree on it (format.md §0)."""

monotonic_s = time.monotonic
"""Seconds that never jump, for deadlines and durations."""
