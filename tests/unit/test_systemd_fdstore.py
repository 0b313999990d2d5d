"""What was kept for us: by name, complete, and not handed on by accident."""

import json
import os
import subprocess
import sys

import pytest

from jfsd.systemd.fdstore import received

CHILD = """
import json, os, sys
os.environ["LISTEN_PID"] = os.environ["LISTEN_PID"] or str(os.getpid())
if sys.argv[1] == "ours":
    from jfsd.systemd.fdstore import received
    found = received()
else:
    from systemd import daemon
    found = {}
    for fd, name in daemon.listen_fds_with_names().items():
        found.setdefault(name, []).append(fd)
inherited = {str(fd): os.get_inheritable(fd) for fds in found.values() for fd in fds}
left = sorted(name for name in os.environ if name.startswith("LISTEN_"))
print(json.dumps([found, sorted(set(inherited.values())), left]))
"""


def child(who, count, names=None, pid=""):
    fds = [os.memfd_create("x") for _ in range(count)]
    env = {**os.environ, "LISTEN_PID": pid, "LISTEN_FDS": str(count)}
    if names is not None:
        env["LISTEN_FDNAMES"] = names
    inner = [sys.executable, "-c", CHILD, who]
    # The shell puts them at 3, 4, 5 …, wherever they are here.
    moves = " ".join(f"{3 + i}<&{fd}" for i, fd in enumerate(fds))
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {moves}', "_", *inner],
        env=env,
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=False,
    )
    for fd in fds:
        os.close(fd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_are_received_by_name_and_none_is_inherited():
    found, inheritable, left = child("ours", 4, "fuse:state:other:state")
    assert found == {"fuse": [3], "state": [4, 6], "other": [5]}
    assert inheritable == [False]
    assert left == []


def test_the_same_as_systemd_python_sees():
    ours, _, _ = child("ours", 3, "fuse:state:arena")
    theirs, _, _ = child("theirs", 3, "fuse:state:arena")
    assert ours == theirs


def test_descriptors_without_names():
    assert child("ours", 2)[0] == {"unknown": [3, 4]}


def test_descriptors_for_another_process_are_left_alone():
    found, _, left = child("ours", 1, "fuse", pid="1")
    assert found == {}
    assert left == []


def test_nothing_was_kept():
    assert received({}) == {}


@pytest.mark.parametrize(
    "environ", [{"LISTEN_FDS": "x"}, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, {}]
)
def test_variables_that_contradict_each_other(environ):
    with pytest.raises(ValueError, match="LISTEN_"):
        received({"LISTEN_PID": str(os.getpid()), **environ})


def test_a_descriptor_that_is_not_there():
    with pytest.raises(OSError, match="Bad file"):
        received({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9999"})
