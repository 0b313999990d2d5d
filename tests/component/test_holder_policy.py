"""What a holder does about a server's end: the rule, without processes."""

import signal

import pytest

from jfsd.daemon.holder_policy import Death, Delays, Verdict, judge

KILLED = int(signal.SIGKILL)
CRASHED = int(signal.SIGSEGV)
LEFT = 0
REFUSED = 9 << 8
UNKNOWN = None


def death(status, **how):
    return Death(status, was_ready=how.pop("was_ready", True), **how)


@pytest.mark.parametrize("status", [KILLED, CRASHED, LEFT, REFUSED, UNKNOWN])
@pytest.mark.parametrize("was_ready", [True, False])
def test_while_the_mount_is_kept_somebody_serves_it(status, was_ready):
    assert judge(death(status, was_ready=was_ready)) is Verdict.RESTART


@pytest.mark.parametrize("status", [LEFT, REFUSED, UNKNOWN])
def test_a_server_that_took_its_mount_back_was_the_last(status):
    assert judge(death(status, holds_fuse=False)) is Verdict.END
    assert judge(death(status, holds_fuse=False, holds_any=False)) is Verdict.END


def test_a_server_killed_while_it_took_things_back_is_replaced_for_the_rest():
    """Bytes may be in what is left."""
    assert judge(death(KILLED, holds_fuse=False)) is Verdict.RESTART


@pytest.mark.parametrize("status", [LEFT, REFUSED])
def test_a_first_server_that_leaves_has_failed(status):
    assert judge(death(status, was_ready=False, first=True)) is Verdict.FAIL
    assert judge(death(status, was_ready=False, first=True, holds_any=False)) is Verdict.FAIL


@pytest.mark.promise(8)
def test_a_first_server_that_is_killed_is_started_again_until_its_time_is_over():
    assert judge(death(KILLED, was_ready=False, first=True, holds_any=False)) is Verdict.RESTART
    assert judge(death(KILLED, was_ready=False, first=True, expired=True)) is Verdict.FAIL


@pytest.mark.promise(11)
def test_a_new_version_that_refuses_gives_way_to_the_former():
    new = {"was_ready": False, "has_former": True}
    assert judge(death(REFUSED, **new)) is Verdict.FALL_BACK
    assert judge(death(KILLED, expired=True, **new)) is Verdict.FALL_BACK
    assert judge(death(KILLED, **new)) is Verdict.RESTART


def test_a_server_that_was_up_is_replaced_at_once():
    delays = Delays()
    for status in (KILLED, CRASHED, REFUSED, LEFT, UNKNOWN):
        assert delays.after(death(status, ready_for_s=60)) == 0


def test_a_server_that_left_in_order_is_replaced_at_once_however_short_it_lived():
    assert Delays().after(death(LEFT, ready_for_s=0.01)) == 0


@pytest.mark.promise(8)
def test_kills_from_outside_are_never_punished():
    delays = Delays()
    assert [delays.after(death(KILLED, ready_for_s=0.01)) for _ in range(10)] == [0] * 10
    assert [delays.after(death(KILLED, was_ready=False)) for _ in range(10)] == [0.1] * 10


def test_starts_that_fail_in_a_row_come_slower_and_slower():
    delays = Delays()
    early = death(REFUSED, was_ready=False)
    assert [delays.after(early) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert delays.after(death(CRASHED, ready_for_s=2)) == 0
    assert delays.after(death(CRASHED, ready_for_s=0.2)) == 0.1
