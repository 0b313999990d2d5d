"""The manual pages and the example: made from the program, complete, and well-formed."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from jfsd.cli.group import VERBS
from jfsd.cli.manual import GENERATED, jfsd_page, mount_page, write
from jfsd.config import roff
from jfsd.config.file import KEYS, read_config
from jfsd.config.flags import BY_KEY, MOUNT_FLAGS
from jfsd.config.manual import example, toml_page
from jfsd.config.settings import MountSettings, settings_from

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {"jfsd.1": jfsd_page, "mount.jfsd.8": mount_page, "jfs.toml.5": toml_page}


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_made_from_the_program_is_up_to_date(name: str, request) -> None:
    path = request.config.rootpath / name
    assert path.read_text(encoding="utf-8") == GENERATED[name](), "run make docs"


def test_all_of_it_is_written_at_once(tmp_path: Path) -> None:
    for name in GENERATED:
        (tmp_path / name).parent.parent.mkdir(exist_ok=True)
    write(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*") if p.is_file()} == set(
        GENERATED
    )


def shown(text: str, directory: Path) -> str:
    """Return a page as man shows it, which complains of nothing."""
    page = directory / "page.1"
    page.write_text(text, encoding="utf-8")
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "200", "MAN_KEEP_FORMATTING": ""}
    env |= {"MAN_DISABLE_SECCOMP": "1", "MANPAGER": "cat", "GROFF_NO_SGR": "1"}
    argv = ["man", "--warnings", "--nh", "--nj", "--local-file", str(page)]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub(".\b", "", done.stdout)


@pytest.mark.parametrize("name", PAGES)
def test_man_accepts_the_page(name: str, tmp_path: Path) -> None:
    assert shown(PAGES[name](), tmp_path).count("\n") > 50


def test_every_character_is_shown_as_it_is(tmp_path: Path) -> None:
    lines = [".TH is no request", "'nor this", "back\\slash -x --long ~ ^ `code` 'q' \"d\" \\fB"]
    text = shown(roff.head("n", 1, "k", "s") + roff.literal("\n".join(lines)), tmp_path)
    assert [line.strip() for line in text.splitlines() if line.strip() in lines] == lines
    text = shown(roff.head("n", 1, "k", "s") + roff.paragraph("`--a-b` is\n.c *it*"), tmp_path)
    assert "       --a-b is .c it\n" in text


def test_every_verb_option_and_key_has_its_place(tmp_path: Path) -> None:
    page = shown(jfsd_page(), tmp_path)
    for verb in VERBS:
        assert f"\n   jfsd {verb} " in page
    for flag in MOUNT_FLAGS:
        assert flag.option in page
    keys = shown(toml_page(), tmp_path)
    for key in KEYS:
        assert f"\n       {key} = " in keys
    words = shown(mount_page(), tmp_path)
    for flag in MOUNT_FLAGS:
        assert flag.name == "o" or re.search(rf"\n       {flag.name}\b", words)


@pytest.mark.promise(17)
def test_the_example_is_a_configuration_and_names_every_default(tmp_path: Path) -> None:
    path = tmp_path / "mnt-jfs.toml"
    path.write_text(example())
    found = read_config(str(path))
    assert (found.meta_url, found.mountpoint, found.values) == (
        "redis://localhost/1",
        "/mnt/jfs",
        {},
    )
    path.write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", example(), flags=re.MULTILINE))
    found = read_config(str(path))
    assert set(found.values) == {flag.name for flag in BY_KEY.values()}
    assert settings_from(found.values) == MountSettings()
