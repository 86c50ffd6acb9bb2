"""The server: Gradio's pages mounted in FastAPI, behind the guard, with one route of its own that gives out files."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import socket
import tempfile
import threading
import webbrowser
from dataclasses import replace
from functools import cache
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from peft_compare import api, frame, look
from peft_compare.files import router
from peft_compare.guard import Guard
from peft_compare.pages import PAGES
from peft_compare.queue import Queue
from peft_compare.refusals import RefusedError
from peft_compare.runs import Runs
from peft_compare.settings import Settings

# Gradio keeps some 0.5 MB of every page that was opened and every program that called without a session of its own, for
# ten thousand of them. The oldest beyond this number start anew when they come back; runs lie on the disk.
SESSIONS = 200


class App:
    """One server and its queue.

    Attributes:
        asgi: what a server such as uvicorn runs.
    """

    def __init__(self, settings: Settings, queue: Queue | None = None):
        settings.runs.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.runs = Runs(settings.runs)
        self.queue = queue or Queue(self.runs, settings.limits, settings.jobs)
        pass_uploads_through_a_folder()
        self.frame = frame.build(settings, self.runs, self.queue, PAGES)
        blocks = self.frame.blocks
        with blocks:
            api.offer(self.frame)
        blocks.queue(default_concurrency_limit=4, max_size=200)
        blocks.state_session_capacity = SESSIONS
        outer = FastAPI(openapi_url=None)
        outer.include_router(router(self.runs, frame.EXAMPLES))
        gr.mount_gradio_app(
            outer,
            blocks,
            path="/",
            server_name=settings.host,
            app_kwargs={"openapi_url": None},
            allowed_paths=[],
            max_file_size=settings.limits.upload_bytes,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            show_error=False,
            theme=look.theme(),
            css=look.css(),
            head=look.script(),
        )
        self.asgi: Any = Guard(outer, settings)

    def begin(self) -> None:
        """Start the queue."""
        self.queue.begin()

    def close(self) -> None:
        """Stop the queue; runs go on."""
        self.queue.close()
        for close in self.frame.closing:
            close()


@cache
def pass_uploads_through_a_folder() -> tempfile.TemporaryDirectory[str]:
    """Have Gradio take uploads into a folder of this process alone, which goes with it; all apps of the process share
    it, since Gradio looks for its name in the environment."""
    folder = tempfile.TemporaryDirectory(prefix="peft-compare-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    return folder


def serve(settings: Settings, opens: bool = False) -> None:
    """Serve until Ctrl-C.

    Raises:
        RefusedError: the port is taken, or another server works in the folder of runs.
    """
    listening = bind(settings)
    port = listening.getsockname()[1]
    app = App(replace(settings, port=port))
    app.begin()
    name = settings.host if ":" not in settings.host else f"[{settings.host}]"
    address = f"http://{name}:{port}"
    print(f"peft-compare: {address}   (runs in {settings.runs}; Ctrl-C stops the page, runs go on)", flush=True)
    if opens:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    config = uvicorn.Config(app.asgi, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        app.close()


def bind(settings: Settings) -> socket.socket:
    """The socket the server listens on.

    Raises:
        RefusedError: the address is taken or not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError as error:
        raise RefusedError(f"{settings.host}:{settings.port} cannot be bound: {error.strerror} (--port)") from None
    listening.listen(128)
    return listening
