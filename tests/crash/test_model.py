"""Random operations and random events, beside the same operations on a plain directory."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from support.model import HandleMachine

if TYPE_CHECKING:
    from pathlib import Path

    from support.kept import Kept

PLACES = [
    *("script.before", "script.after", "write.copied", "commit.after"),
    *("pack.begun", "pack.joined", "pack.forgotten", "upload.named"),
]
SLOW = os.environ.get("JFSD_SLOW") == "1"


class EventMachine(HandleMachine):
    """Servers end between the operations, and in the middle of them."""

    kept: Kept

    @rule(by=st.sampled_from([signal.SIGKILL, signal.SIGUSR2]))
    def end(self, by: int) -> None:
        self.kept.send(by)

    @rule(place=st.sampled_from(PLACES))
    def die_later(self, place: str) -> None:
        self.kept.arm(f"{place}:{1 + self.count % 5}")
        self.kept.send(signal.SIGKILL)

    def teardown(self) -> None:
        with suppress(ValueError):
            self.kept.arm()
        super().teardown()


@pytest.mark.promise(1)
@pytest.mark.promise(2)
@pytest.mark.promise(4)
@pytest.mark.timeout(900 if SLOW else 240)
def test_a_tree_like_its_reference_whatever_happens(kept: Kept, ref: Path) -> None:
    machine = type("Machine", (EventMachine,), {"work": kept.path, "ref": ref, "kept": kept})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60 if SLOW else 6,
            stateful_step_count=50,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # what hangs on times does not shrink
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    kept.check()
