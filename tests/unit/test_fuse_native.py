"""The C module: it compiles without a word, and is what pyfuse3 calls."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import jfsd.fuse

FOLDER = Path(jfsd.fuse.__file__).parent


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("source", ["_native.c", "_dispatch.c", "_forms.c"])
def test_it_compiles_without_warnings(tmp_path, source):
    flags = subprocess.run(
        ["pkg-config", "--cflags", "fuse3"], capture_output=True, text=True, check=True
    ).stdout
    subprocess.run(
        [
            *("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion"),
            *("-Wno-sign-conversion", "-Werror", "-fPIC", "-c"),
            *shlex.split(flags),
            f"-isystem{sysconfig.get_path('include')}",
            *(str(FOLDER / source), "-o", str(tmp_path / "native.o")),
        ],
        check=True,
    )


def test_it_must_come_before_pyfuse3():
    code = "import pyfuse3\ntry:\n import jfsd.fuse.native\nexcept ImportError as e: print(e)"
    assert run(code) == "jfsd.fuse.native must be imported before pyfuse3"


def test_trio_is_not_loaded_and_not_hidden():
    code = (
        "import sys, jfsd.fuse.native\n"
        "print('trio' in sys.modules)\n"
        "import trio; print(trio.__name__, hasattr(trio, 'run'))"
    )
    assert run(code) == "False\ntrio True"


def test_packages_are_not_looked_for_and_not_hidden():
    code = (
        "import sys, jfsd.fuse.native\n"
        "print('importlib.metadata' in sys.modules)\n"
        "from importlib.metadata import version; print(version('pyfuse3') > '3')"
    )
    assert run(code) == "False\nTrue"


@pytest.mark.parametrize(
    "arguments", ["", "fd=3", "fd=3, init_in=b'short'", "fd=-1, init_in=bytes(104)"]
)
def test_prepare_wants_a_descriptor_and_an_init_request(arguments):
    code = (
        "from jfsd.fuse import native\n"
        f"try: native.prepare({arguments})\n"
        "except ValueError as e: print(e)"
    )
    assert run(code) == "need a descriptor and an INIT request"


def test_outside_a_request_there_is_nothing():
    code = (
        "from jfsd.fuse import native as n\n"
        "print(n.current(), n.body(), n.take(), n.waiting(), n.init_out())\n"
        "print(n.take_answered(), n.attached())"
    )
    assert run(code) == "(0, 0, 0, 0, 0, 0) b'' True 0 b''\n[] False"


@pytest.mark.promise(9)
@pytest.mark.parametrize("before", ["", "import faulthandler; faulthandler.enable()"])
def test_a_crash_is_noted_and_a_kill_is_not(tmp_path, before):
    note = tmp_path / "note"
    for name, noted in (("SIGSEGV", True), ("SIGABRT", True), ("SIGKILL", False)):
        note.write_bytes(bytes(4096))
        code = f"""if 1:
            import mmap, os, signal
            {before}
            from jfsd.fuse import native
            fd = os.open({str(note)!r}, os.O_RDWR)
            native.note_crashes(mmap.mmap(fd, 4096), 16)
            os.kill(os.getpid(), signal.{name})
        """
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
        )
        number = getattr(signal, name)
        assert done.returncode == -number
        assert int.from_bytes(note.read_bytes()[16:24], sys.byteorder) == (number if noted else 0)
