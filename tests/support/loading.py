"""The checked load as a program: usage: python -m support.loading DIRECTORY [KIND...]

Prints `ready`, works until a line comes on stdin, and prints one JSON object: what each worker
did, or what went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.load import KINDS, Load


def main(directory: str, *kinds: str) -> int:
    """Run the load and check what it was told was done."""
    top = Path(directory)
    load = Load(top, kinds or tuple(KINDS))
    try:
        print("ready", flush=True)
        if not sys.stdin.readline():
            return 1
        reports = load.stop()
        load.verify(top)
        found = {
            kind: {"operations": report.operations, "longest_s": report.longest_s}
            for kind, report in reports.items()
        }
        print(json.dumps(found), flush=True)
    except (AssertionError, OSError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    finally:
        load.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
