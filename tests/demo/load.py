"""The load of `make run`: plan a tree, copy it, verify it. Prints one line of JSON.

`plan` chooses files of this machine and writes down what they are; `copy` writes them to
the target; `verify` compares the target with what was written down: names, kinds, sizes,
modes, times, link targets and SHA-256 of every file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = ("/usr/share", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/include", "/usr/lib")
MAX_TREE_BYTES = 256 << 20
MAX_FILE_BYTES = 32 << 20
STEP_BYTES = 1 << 20
WORKERS = 4

Entry = dict[str, str | int]


def candidates() -> Iterator[str]:
    """Yield files and symlinks of this machine, always in the same order."""
    for source in SOURCES:
        for folder, names, files in os.walk(source):
            names.sort()
            for name in sorted(files):
                yield os.path.join(folder, name)


def describe(path: str, target: str) -> Entry | None:
    """Return what a file is, without its sum; None for what cannot be copied."""
    status = os.lstat(path)
    entry: Entry = {"source": path, "target": target, "mtime_ns": status.st_mtime_ns}
    if stat.S_ISLNK(status.st_mode):
        return {**entry, "kind": "link", "link": os.readlink(path)}
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        return None
    return {**entry, "kind": "file", "size": status.st_size, "mode": status.st_mode & 0o777}


def plan(files: int, large_mib: int) -> list[Entry]:
    """Return the entries of the tree: files of this machine, and large ones made up."""
    entries: list[Entry] = []
    seen: set[str] = set()
    size = 0
    for path in candidates():
        if len(entries) >= files or size >= MAX_TREE_BYTES:
            break
        try:
            entry = None if path in seen else describe(path, path.lstrip("/"))
        except OSError:
            continue
        if entry is not None:
            seen.add(path)
            entries.append(entry)
            size += int(entry.get("size", 0))
    for number, share in enumerate((2, 4, 4)):
        mib = max(1, large_mib // share)
        entries.append(
            {
                "kind": "large",
                "target": f"large/file-{number}",
                "size": mib << 20,
                "seed": number,
                "mode": 0o644,
                "mtime_ns": 1_600_000_000_123_456_789,
            }
        )
    return entries


def content(entry: Entry) -> Iterator[bytes]:
    """Yield the bytes that the entry shall have."""
    if entry["kind"] == "large":
        source = random.Random(int(entry["seed"]))
        for _ in range(int(entry["size"]) // STEP_BYTES):
            yield source.randbytes(STEP_BYTES)
        return
    with open(str(entry["source"]), "rb") as file:
        while step := file.read(STEP_BYTES):
            yield step


def copy_one(root: Path, entry: Entry) -> int:
    """Write one entry below the root and note its sum; return its size."""
    path = root / str(entry["target"])
    if entry["kind"] == "link":
        path.symlink_to(str(entry["link"]))
        return 0
    digest = hashlib.sha256()
    written = 0
    with open(path, "wb") as file:
        for step in content(entry):
            digest.update(step)
            written += file.write(step)
        os.fchmod(file.fileno(), int(entry["mode"]))
    os.utime(path, ns=(int(entry["mtime_ns"]), int(entry["mtime_ns"])))
    entry["sum"] = digest.hexdigest()
    entry["size"] = written
    return written


def verify_one(root: Path, entry: Entry) -> int:
    """Compare one entry with what was written; return its size.

    Raises:
        ValueError: It differs; the text says in what.
    """
    path = root / str(entry["target"])
    status = os.lstat(path)
    if entry["kind"] == "link":
        same(path, "target", os.readlink(path), entry["link"])
        return 0
    same(path, "size", status.st_size, entry["size"])
    same(path, "mode", stat.S_IMODE(status.st_mode), entry["mode"])
    same(path, "mtime", status.st_mtime_ns, entry["mtime_ns"])
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while step := file.read(STEP_BYTES):
            digest.update(step)
    same(path, "content (SHA-256)", digest.hexdigest(), entry["sum"])
    return status.st_size


def same(path: Path, what: str, found: object, expected: object) -> None:
    """Return if the two are equal."""
    if found != expected:
        raise ValueError(f"{path}: {what} is {found}, expected {expected}")


def make_directories(root: Path, entries: list[Entry]) -> None:
    """Make the directories of all entries."""
    for folder in sorted({str(Path(str(entry["target"])).parent) for entry in entries}):
        (root / folder).mkdir(parents=True, exist_ok=True)


def compare_names(root: Path, entries: list[Entry]) -> None:
    """Return if the listing of the tree has every name once, and no other."""
    found = []
    for folder, _, files in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files]
        # Links to directories are listed as directories.
        found += [
            os.path.relpath(item.path, root) for item in os.scandir(folder) if is_folder_link(item)
        ]
    expected = sorted(str(entry["target"]) for entry in entries)
    if sorted(found) != expected:
        differ = set(found).symmetric_difference(expected)
        raise ValueError(
            f"{root}: the listing differs in {len(differ)} names: {sorted(differ)[:5]}"
        )


def is_folder_link(item: os.DirEntry[str]) -> bool:
    """Return whether this is a symbolic link that leads to a directory."""
    return item.is_symlink() and item.is_dir()


def main() -> int:
    """Run one verb."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("plan", "copy", "verify"))
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--large-mib", type=int, default=0)
    options = parser.parse_args()
    if options.verb == "plan":
        entries = plan(options.files, options.large_mib)
        sizes = [int(entry.get("size", 0)) for entry in entries]
    else:
        entries = json.loads(options.manifest.read_text(encoding="utf-8", errors="surrogateescape"))
        if options.verb == "copy":
            make_directories(options.target, entries)
        else:
            compare_names(options.target, entries)
        do_one = copy_one if options.verb == "copy" else verify_one
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                sizes = list(pool.map(lambda entry: do_one(options.target, entry), entries))
        except (OSError, ValueError) as error:
            print(f"{options.verb}: {error}", file=sys.stderr)
            return 1
    if options.verb != "verify":
        text = json.dumps(entries)
        options.manifest.write_text(text, encoding="utf-8", errors="surrogateescape")
    print(json.dumps({"files": len(entries), "bytes": sum(sizes)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
