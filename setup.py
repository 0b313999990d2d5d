"""Builds the native parts; everything else is in pyproject.toml."""

from __future__ import annotations

import shlex
import subprocess

from setuptools import Extension, setup


def pkg_config(*what: str) -> list[str]:
    """Return the words that pkg-config prints for libfuse."""
    out = subprocess.run(["pkg-config", *what, "fuse3"], check=True, stdout=subprocess.PIPE)  # noqa: S603, S607
    return shlex.split(out.stdout.decode())


_C = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        Extension(
            "jfsd.fuse._native",
            sources=[f"jfsd/fuse/{part}.c" for part in ("_native", "_dispatch", "_forms")],
            depends=["jfsd/fuse/_native.h"],
            extra_compile_args=[*pkg_config("--cflags"), *_C, "-fvisibility=hidden"],
            extra_link_args=pkg_config("--libs"),
        ),
        Extension(
            "jfsd.object._disk",
            sources=["jfsd/object/_disk.c"],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"],
            extra_link_args=["-pthread"],
        ),
        Extension(
            "jfsd.vfs._listing",
            sources=["jfsd/vfs/_listing.c"],
            extra_compile_args=_C,
        ),
    ]
)
