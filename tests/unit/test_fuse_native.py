"""The C module: it compiles without a word, and is what pyfuse3 calls."""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import jfsd.fuse

SOURCE = Path(jfsd.fuse.__file__).with_name("_native.c")


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_compiles_without_warnings(tmp_path):
    flags = subprocess.run(
        ["pkg-config", "--cflags", "fuse3"], capture_output=True, text=True, check=True
    ).stdout
    subprocess.run(
        [
            *("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion"),
            *("-Wno-sign-conversion", "-Werror", "-fPIC", "-c"),
            *shlex.split(flags),
            f"-isystem{sysconfig.get_path('include')}",
            *(str(SOURCE), "-o", str(tmp_path / "native.o")),
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
        "print(n.current(), n.body(), n.payload(), n.init_out(), n.take_answered(), n.attached())"
    )
    assert run(code) == "(0, 0, 0, 0, 0, 0) b'' b'' b'' [] False"
