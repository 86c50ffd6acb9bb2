"""The process that draws: a request a line on standard input, answers a line on standard output, all of it JSON.

    python -m peft_compare.drawing.worker [IDLE_SECONDS]

Every answer has the request's `id`, and `progress` (what, done, of), `failure` (a sentence) or `result`. The process
ends when its input does, even in the middle of a picture, and by itself when nothing was asked for a while.
"""

import json
import os
import queue
import sys
import threading
import traceback
from typing import Any


def listen(requests: "queue.Queue[str]") -> None:
    """Pass requests on; the end of the input is the end of the process."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def serve(answers: Any, idle: float) -> None:
    """Answer until nothing is asked for `idle` seconds."""
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=listen, args=(requests,), daemon=True).start()
    from peft_compare.drawing.answers import SAID, answer
    from peft_compare.drawing.requests import read_request
    from peft_compare.drawing.stage import Stage
    from peft_runs.errors import sentence

    stage = Stage()
    while True:
        try:
            data = json.loads(requests.get(timeout=idle))
        except queue.Empty:
            return
        number = data.pop("id")

        def say(number: int = number, **words: Any) -> None:
            answers.write(json.dumps({"id": number, **words}) + "\n")
            answers.flush()

        try:
            say(result=answer(read_request(data), stage, lambda *progress, say=say: say(progress=progress)))
        except SAID as error:
            say(failure=sentence(error))
        except MemoryError:
            raise
        except Exception as error:
            traceback.print_exc()
            say(failure=f"drawing failed: {sentence(error) or type(error).__name__}", details=traceback.format_exc())


def main(idle: float = 600.0) -> None:
    """Serve; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(answers, idle)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
