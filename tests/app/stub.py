"""A command that stands in for a comparison: it writes what the words of its request say, and takes as long.

stub.py RUN        words: SECONDS, and `fail`, `crash` or `deaf`
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

run = Path(sys.argv[1])
words = json.loads((run / "request.json").read_text(encoding="utf-8"))["words"]
if "deaf" in words:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
checkpoint = run / "out" / "lora" / "seed-0" / "checkpoint" / "step-00000004"
checkpoint.mkdir(parents=True)
(checkpoint / "state.json").write_text("{}", encoding="utf-8")
(run / "out" / "ready").touch()
if "fail" in words:
    sys.exit("vision-peft: there is no such thing")
if "crash" in words:
    os.kill(os.getpid(), signal.SIGSEGV)
end = time.monotonic() + float(words[0])
while time.monotonic() < end:
    time.sleep(0.02)
(run / "out" / "mine").write_text(run.name, encoding="utf-8")
