"""``python -m tests.kernels.capabilities [--write FILE]``: run every check, then write the table or print it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .table import cells, prove, render


def main() -> int:
    """Exit code 1, and no table, if a check gives something else than the table would say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the table goes")
    where = parser.parse_args().write
    start, wrong = time.monotonic(), 0
    every = list(cells())
    for done, (method, layer, capability) in enumerate(every, 1):
        if sys.stderr.isatty():
            print(f"\r{done}/{len(every)} {method:14}{layer:24}{capability:28}", end="", file=sys.stderr)
        try:
            prove(method, layer, capability)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong += 1
            print(f"\n{method}, {layer}, {capability}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"\n{len(every)} checks in {time.monotonic() - start:.0f} s, {wrong} wrong", file=sys.stderr)
    if wrong:
        return 1
    if where is None:
        print(render(), end="")
    else:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(render())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
