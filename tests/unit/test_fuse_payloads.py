"""Writes that wait hold a bounded amount of memory."""

from __future__ import annotations

import pytest

from jfsd.fuse.payloads import Payloads

pytestmark = pytest.mark.promise(19)
MIB = 1 << 20
KIB = 1 << 10


def test_it_holds_at_the_limit_and_lets_go_at_half_of_it() -> None:
    told: list[bool] = []
    payloads = Payloads(told.append, most_bytes=4 * MIB)
    costs = [payloads.take(MIB) for _ in range(4)]
    assert told == []
    costs.append(payloads.take(1))
    assert told == [True]
    assert repr(payloads) == f"<Payloads {4 * MIB + 1} of {4 * MIB} full>"
    payloads.give(costs.pop())
    payloads.give(costs.pop())
    assert told == [True]
    payloads.give(costs.pop())
    assert told == [True, False]
    assert repr(payloads) == f"<Payloads {2 * MIB} of {4 * MIB}>"


@pytest.mark.parametrize(
    ("length", "cost"),
    [(1, 1), (256 * KIB, 256 * KIB), (256 * KIB + 1, MIB), (MIB, MIB)],
)
def test_a_payload_that_is_lent_costs_its_whole_room(length: int, cost: int) -> None:
    assert Payloads(lambda _: None).take(length) == cost
