"""`peft-compare`: start the app."""

import argparse
import os
import sys
from pathlib import Path

from peft_compare.refusals import RefusedError
from peft_compare.settings import MIB, Limits, Settings, loopback

PASSWORD = "PEFT_COMPARE_PASSWORD"
SHORTEST = 8


def main() -> None:
    """Entry point of `peft-compare`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        settings, opens = read(sys.argv[1:])
        from peft_compare.server import serve

        serve(settings, opens)
    except RefusedError as error:
        print(f"peft-compare: {error}", file=sys.stderr)
        sys.exit(2)


def read(words: list[str]) -> tuple[Settings, bool]:
    """The settings that a command line asks for, and whether to open a browser.

    Raises:
        RefusedError: it would be open to other machines without a password, or nameless.
    """
    given = _parser().parse_args(words)
    password = os.environ.get(PASSWORD)
    if given.password_file is not None:
        try:
            password = given.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise RefusedError(f"the password file cannot be read: {error}") from None
    if not loopback(given.host):
        if not password:
            raise RefusedError(
                f"--host {given.host} lets other machines in, which needs a password: set {PASSWORD} or --password-file"
            )
        if given.host in ("0.0.0.0", "::") and not given.allow_host:
            raise RefusedError(f"--host {given.host} needs the names it is called by: --allow-host NAME")
    if password is not None and len(password) < SHORTEST:
        raise RefusedError(f"the password must have at least {SHORTEST} characters, found {len(password)}")
    limits = Limits(
        waiting=given.max_waiting, runs_bytes=given.max_runs_mib * MIB, upload_bytes=given.max_upload_mib * MIB
    )
    settings = Settings(
        runs=given.runs.expanduser().resolve(),
        host=given.host,
        port=given.port,
        hosts=tuple(given.allow_host),
        password=password or None,
        jobs=given.jobs,
        limits=limits,
    )
    return settings, given.open


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peft-compare",
        allow_abbrev=False,
        description="Compare adapters in a browser.",
        epilog=f"Another --host than this machine's own wants a password: {PASSWORD} or --password-file.",
    )
    limits = Limits()
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="port to bind; 0 takes a free one (default: 7860)")
    parser.add_argument("--runs", type=Path, default=Path("runs/app"), help="folder of the runs (default: runs/app)")
    parser.add_argument("--allow-host", action="append", default=[], help="a further name the app is called by")
    parser.add_argument("--password-file", type=Path, help="file that holds the password")
    parser.add_argument("--jobs", type=_positive, default=1, help="comparisons at the same time (default: 1)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--max-waiting", type=_positive, default=limits.waiting, help="comparisons that may wait")
    parser.add_argument(
        "--max-runs-mib", type=_positive, default=limits.runs_bytes // MIB, help="size of all runs together"
    )
    parser.add_argument(
        "--max-upload-mib", type=_positive, default=limits.upload_bytes // MIB, help="size of one uploaded file"
    )
    return parser


def _positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value
