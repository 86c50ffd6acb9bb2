"""Many programs use one app: each posts comparisons, waits for them, and reads their results by two ways.

    python apps/benchmarks/load.py [--clients 30] [--seconds 180] [--real]

The server is a process of its own on this machine's loopback. Comparisons are stood in for by a process that writes a
record, since the load is that of the app and not of training; `--real` trains. Every client learns another rate, so
that a result can be nobody else's. When the time is over, what was accepted is waited for; then every run is counted
on the disk. Memory is the server's resident set.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from peft_compare.runs import Runs

HERE = Path(__file__).resolve().parent
EVERY = 1.0  # seconds between a client's looks at its run, and between two readings of memory
DRAIN = 900.0  # seconds in which the last accepted runs have to end
TINY = "--model.pretrained false --data.train_size 60 --optim.batch_size 20"
STAND_IN = (sys.executable, "-S", str(HERE / "finished.py"))  # and the record that it writes
MIB = 2**20


class ToldError(Exception):
    """The app refused, with a sentence."""


@dataclass
class Tally:
    """What the clients saw.

    Attributes:
        seconds: of each kind of request, the time of every one.
        accepted: run → the learning rate that its client asked for.
        read: runs whose result was read and is the client's own.
        mixed: what was another's, in words.
        refused: how often a full queue declined.
        errors: answers that should not have been.
        memory: MiB of the server, reading by reading.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    mixed: list[str] = field(default_factory=list)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)


class Client:
    """A program with a name of its own, as a browser would have one."""

    def __init__(self, http: httpx.AsyncClient, number: int, tally: Tally):
        self.http, self.number, self.tally, self.asked, self.read = http, number, tally, 0, 0
        self.session = secrets.token_hex(8)

    async def timed(self, kind: str, asking: Any) -> Any:
        begun = time.monotonic()
        try:
            return await asking
        finally:
            self.tally.seconds.setdefault(kind, []).append(time.monotonic() - begun)

    async def call(self, name: str, *values: Any) -> Any:
        """What `gradio_client` does: post, then read the events until the answer.

        Raises:
            ToldError: the answer is a sentence instead.
        """
        body = {"data": values, "session_hash": self.session}
        posted = (await self.http.post(f"/gradio_api/call/{name}", json=body)).raise_for_status()
        heard = await self.http.get(f"/gradio_api/call/{name}/{posted.json()['event_id']}")
        kind, data = "", ""
        for line in heard.raise_for_status().text.splitlines():
            kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
            data = line.removeprefix("data: ") if line.startswith("data: ") else data
        if kind != "complete":
            raise ToldError(data)
        return json.loads(data)[0]

    async def work(self, until: float, methods: str, settings: str, most: int) -> None:
        """Post, wait and read until the time is over or `most` runs are read; the last one is waited for."""
        await self.timed("page", self.http.get("/"))
        while time.monotonic() < until and self.read < most:
            self.asked += 1
            rate = f"{1e-3 + 1e-6 * self.number + 1e-9 * self.asked:.9f}"
            words = f"{settings} --optim.lr {rate}"
            try:
                run = await self.timed("start", self.call("start", methods, "vit_mini", 1, 1, 0, words))
                self.tally.accepted[run["run"]] = rate
                await self.follow(run["run"], rate)
            except ToldError as told:
                if "are waiting, which is as many as may" in str(told):
                    self.tally.refused += 1
                else:
                    self.tally.errors[str(told)] += 1
                await asyncio.sleep(EVERY)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.tally.errors[f"{type(error).__name__}: {error}"] += 1
                await asyncio.sleep(EVERY)

    async def follow(self, run: str, rate: str) -> None:
        """Wait for the run, then hold its record by name and its file by address against what was asked."""
        deadline = time.monotonic() + DRAIN
        while (state := await self.timed("state", self.call("state", run)))["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise ToldError("the run does not end")
            await asyncio.sleep(EVERY)
        if state["state"] != "done":
            raise ToldError(f"the run ended as {state['state']}: {state['said']}")
        result = await self.timed("result", self.call("result", run))
        file = await self.timed("file", self.http.get(f"/runs/{run}/files/out/results.json"))
        for told, what in ((state["command"], "state"), (result["command"], "result"), (file.text, "file")):
            if rate not in told:
                self.tally.mixed.append(f"{what} of {run} lacks {rate}")
        self.tally.read.add(run)
        self.read += 1


@contextmanager
def serving(folder: Path, real: bool) -> Iterator[tuple[str, psutil.Process]]:
    """An app in a process of its own; its address and the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=host, args=(folder, real, there), daemon=True)
    process.start()
    try:
        if not here.poll(300):
            raise RuntimeError("the server did not start within 300 s")
        yield here.recv(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(30)


def host(folder: Path, real: bool, told: Any) -> None:
    """Serve until terminated."""
    import uvicorn

    from peft_compare.frame import EXAMPLES
    from peft_compare.queue import Queue
    from peft_compare.server import App, bind
    from peft_compare.settings import Settings

    record = EXAMPLES / "digits" / "out" / "results.json"
    command = () if real else (*STAND_IN, str(record))
    settings = Settings(runs=folder, port=0)
    app = App(settings, Queue(Runs(folder), settings.limits, settings.jobs, command))
    listening = bind(settings)
    app.begin()
    told.send(f"http://127.0.0.1:{listening.getsockname()[1]}")
    config = uvicorn.Config(app.asgi, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])
    app.close()


async def drive(
    url: str, server: psutil.Process, clients: int, seconds: float, methods: str, settings: str, most: int
) -> Tally:
    """All clients at once, and a reading of the server's memory each second."""
    tally, until = Tally(), time.monotonic() + seconds

    async def one(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            await Client(http, number, tally).work(until, methods, settings, most)

    async def watch() -> None:
        while True:
            tally.memory.append(server.memory_info().rss / MIB)
            await asyncio.sleep(EVERY)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*map(one, range(clients)))
    watching.cancel()
    return tally


def measured(
    url: str,
    server: psutil.Process,
    folder: Path,
    clients: int,
    seconds: float,
    methods: str,
    settings: str,
    most: int = sys.maxsize,
) -> dict[str, Any]:
    """Put a server under load whose runs lie in `folder`; what came of it, the lost and the mixed up first.

    Args:
        seconds: in which clients begin with another run.
        most: runs of each client.
    """
    before, begun = server.memory_info().rss / MIB, time.process_time()
    tally = asyncio.run(drive(url, server, clients, seconds, methods, settings, most))
    spent, after = time.process_time() - begun, server.memory_info().rss / MIB
    early = tally.memory[: len(tally.memory) // 3 + 1][-5:]
    return {
        "clients": clients,
        "seconds": seconds,
        "runs": counted(tally, {run.id: (run.state, run.request.owner) for run in Runs(folder).all()}),
        "errors": dict(tally.errors),
        "requests": {name: latencies(times) for name, times in tally.seconds.items()},
        "server": {
            "MiB before": round(before),
            "MiB after a third": round(statistics.median(early)),
            "MiB most": round(max(tally.memory)),
            "MiB after": round(after),
            "CPU seconds": round(sum(server.cpu_times()[:2]), 1),
        },
        "clients' CPU seconds": round(spent, 1),
    }


def counted(tally: Tally, kept: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """What became of the runs; `kept` are those on the disk, with state and owner."""
    done = {run for run, (state, _) in kept.items() if state == "done"}
    return {
        "accepted": len(tally.accepted),
        "finished": len(done),
        "read": len(tally.read),
        "lost": sorted(set(tally.accepted) - done),
        "made by nobody": sorted(set(kept) - set(tally.accepted)),
        "mixed up": tally.mixed,
        "refused by a full queue": tally.refused,
        "owners": len({owner for _, owner in kept.values()}),
    }


def latencies(seconds: list[float]) -> dict[str, float]:
    """How many there were, and milliseconds of the middle one, of the slowest twentieth, and of the slowest."""
    ordered = sorted(seconds)
    at = {"p50": (len(ordered) - 1) // 2, "p95": math.ceil(0.95 * len(ordered)) - 1, "most": -1}
    return {"count": len(ordered), **{f"{name} ms": round(1000 * ordered[place], 1) for name, place in at.items()}}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=30, choices=range(1, 201), metavar="1-200")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--real", action="store_true", help="train, instead of a process that writes a record")
    parser.add_argument("--out", type=Path, help="file for the figures (default: results beside this script)")
    given = parser.parse_args()
    from peft_runs.compare_machine import machine, versions

    asked = (given.clients, min(given.seconds, 3600.0), "linear_probe", TINY if given.real else "")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        with serving(folder, given.real) as (url, server):
            found = measured(url, server, folder, *asked)
    found |= {"comparisons": "real" if given.real else "stood in for", "machine": machine(None), "versions": versions()}
    text = json.dumps(found, indent=2)
    out = given.out or HERE / "results" / ("load_real.json" if given.real else "load.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
