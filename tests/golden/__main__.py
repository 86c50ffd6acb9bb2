"""``python -m tests.golden FILE...``: compare files of golden vectors with what this project computes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .harness import check
from .table import TABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a tensor and the counts; give 0 when something was compared and all of it agreed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="safetensors files of golden vectors")
    files = parser.parse_args(arguments).files
    ok = failed = 0
    for path in files:
        lines = check(path, TABLE)
        for line in lines:
            print(line, flush=True)
        ok += sum(line.ok for line in lines)
        failed += sum(not line.ok for line in lines)
    print(f"{ok + failed} compared in {len(files)} files: {ok} ok, {failed} FAIL")
    return 0 if ok and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
