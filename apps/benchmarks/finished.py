"""A command that stands in for a comparison under load: the record that comes with the app, with this request's words.

finished.py RECORD RUN
"""

import json
import shlex
import sys
from pathlib import Path

record, run = Path(sys.argv[1]), Path(sys.argv[2])
request = json.loads((run / "request.json").read_text(encoding="utf-8"))
results = json.loads(record.read_text(encoding="utf-8"))
results["command"] = shlex.join([request["program"], *request["words"]])
(run / "out").mkdir()
(run / "out" / "results.json").write_text(json.dumps(results), encoding="utf-8")
