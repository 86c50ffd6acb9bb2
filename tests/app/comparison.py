"""A command that stands in for a comparison where a test needs one that takes its time: it writes what the real one
writes while it trains, step by step, and at the end what the comparison that comes with the app has left.

    comparison.py EXAMPLE RUN        words of the request: --methods A,B ... --run.epochs N; five steps an epoch

After the first epoch of each method it waits for the file `go` in the run's folder, so that no test has to be quick.
"""

import json
import shutil
import sys
import time
from pathlib import Path

EPOCH, PAUSE = 5, 0.01
LONGEST = 300.0  # seconds, should nobody be left to let it go on

example, run = Path(sys.argv[1]), Path(sys.argv[2])
words = json.loads((run / "request.json").read_text(encoding="utf-8"))["words"]
methods = words[words.index("--methods") + 1].split(",")
steps = EPOCH * int(words[words.index("--run.epochs") + 1])
out = run / "out"
out.mkdir()
runs = [
    {"method": name, "seed": 0, "recipe": "digits", "words": words[-4:], "place": f"{name}/seed-0"} for name in methods
]
plan = {"format": 1, "family": "vision", "recipe": "digits", "words": words, "runs": runs, "jobs": 1, "threads": None}
(out / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
(out / "course.json").write_text(json.dumps({"steps": steps, "metric": "accuracy"}), encoding="utf-8")
for name in methods:
    place = out / name / "seed-0"
    checkpoint = place / "checkpoint" / "step-00000000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}", encoding="utf-8")
    with (place / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            epoch = (step - 1) // EPOCH
            line = {"kind": "step", "step": step, "epoch": epoch, "loss": 2 / step, "lr": 1e-3, "seconds": 0.2}
            print(json.dumps(line), file=file, flush=True)
            if step % EPOCH == 0:
                judged = {"kind": "evaluation", "step": step, "epoch": epoch, "accuracy": 1 - 0.9 / step}
                print(json.dumps(judged), file=file, flush=True)
            deadline = time.monotonic() + LONGEST
            while step == EPOCH and not (run / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(PAUSE)
shutil.rmtree(out)
shutil.copytree(example / "out", out)
