"""Work on what strangers send, in a process of its own with a limit of time and memory; a crash there harms nobody.

python -m peft_compare.aside MODULE WORDS...        carries out MODULE's `main(words)`; prints its answer as JSON
"""

import importlib
import json
import resource
import subprocess
import sys
from typing import Any

from peft_compare.refusals import RefusedError

MEMORY = 6 * 2**30
REFUSED = 3


def done_aside(module: str, words: list[str], seconds: float, what: str) -> Any:
    """The answer of `peft_compare.<module>.main(words)` in another process.

    Raises:
        RefusedError: it refused, took too long, or ended without an answer.
    """
    command = [sys.executable, "-P", "-m", "peft_compare.aside", module, *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise RefusedError(f"{what} took longer than {seconds:g} s") from None
    if done.returncode == REFUSED:
        raise RefusedError(json.loads(done.stdout))
    if done.returncode:
        raise RefusedError(f"{what} could not be done: the process that tried ended with code {done.returncode}")
    return json.loads(done.stdout)


def main(module: str, words: list[str]) -> int:
    """Carry it out in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        answer = importlib.import_module(f"peft_compare.{module}").main(words)
    except RefusedError as refusal:
        print(json.dumps(str(refusal)))
        return REFUSED
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
