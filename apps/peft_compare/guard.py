"""What stands before every request: only known hosts, no foreign page, the password, and a name for each browser.

A browser's name is a random cookie; runs remember its digest, so that what lies on the disk lets nobody in.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from peft_compare.settings import Settings

BROWSER, PASS = "peft_compare_browser", "peft_compare_pass"
YEAR = 365 * 24 * 3600
# Routes of Gradio's that the app has no use for: they fetch addresses, or change and tell what is not theirs.
CLOSED = (
    "/gradio_api/proxy=",
    "/gradio_api/file=http",
    "/gradio_api/vibe",
    "/gradio_api/undo-vibe",
    "/gradio_api/process_recording",
    "/gradio_api/run-history",
    "/gradio_api/runs",
    "/gradio_api/deep_link",
    "/gradio_api/stream",
    "/gradio_api/dev",
    "/gradio_api/profiling",
    "/monitoring",
)
Send = Callable[[Any], Awaitable[None]]


def owner_of(cookies: Any) -> str:
    """Who asks: the digest of the browser's name; empty for a program without one."""
    name = dict(cookies or {}).get(BROWSER, "")
    return hashlib.sha256(name.encode()).hexdigest()[:32] if name else ""


class Guard:
    """ASGI middleware.

    Args:
        app: what lies behind.
        settings: hosts and password.
    """

    def __init__(self, app: Any, settings: Settings):
        self.app, self.settings = app, settings
        self.passes: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self.refusal(scope, headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        cookies = read_cookies(headers.get("cookie", ""))
        if self.settings.password and not self.admitted(cookies):
            await self.ask(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/" and BROWSER not in cookies:
            name = secrets.token_hex(16)
            scope["headers"] = [*scope["headers"], (b"cookie", f"{BROWSER}={name}".encode())]
            send = with_cookie(send, f"{BROWSER}={name}; Max-Age={YEAR}; Path=/; HttpOnly; SameSite=Lax")
        await self.app(scope, receive, with_headers(send))

    def refusal(self, scope: Any, headers: Headers) -> Response | None:
        """Why the request goes no further, if it does not."""
        host = headers.get("host", "")
        if name_of(host) not in self.settings.known_hosts:
            return PlainTextResponse(f"This app does not answer to the name {name_of(host)!r} (--allow-host).", 400)
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        cross = headers.get("sec-fetch-site") == "cross-site" and scope.get("method", "GET") not in ("GET", "HEAD")
        if (foreign and scope.get("method") != "GET") or cross or (foreign and scope["type"] == "websocket"):
            return PlainTextResponse("Another site's page may not use this app.", 403)
        if scope["path"].startswith(CLOSED):
            return PlainTextResponse("Not found.", 404)
        return None

    def admitted(self, cookies: dict[str, str]) -> bool:
        """Whether this browser has given the password."""
        return cookies.get(PASS, "") in self.passes

    async def ask(self, scope: Any, receive: Any, send: Send) -> None:
        """The page that asks for the password, or the answer to what was typed there."""
        from peft_compare.look import login_page

        request = Request(scope, receive)
        wrong = False
        if request.method == "POST" and scope["path"] == "/login":
            async with request.form(max_files=0, max_fields=4) as form:
                given = str(form.get("password", ""))
            if hmac.compare_digest(given.encode(), (self.settings.password or "").encode()):
                token = secrets.token_hex(16)
                self.passes.add(token)
                answer: Response = RedirectResponse("/", 303)
                answer.set_cookie(PASS, token, max_age=7 * 24 * 3600, httponly=True, samesite="lax")
                await answer(scope, receive, send)
                return
            wrong = True
        wants_page = "text/html" in request.headers.get("accept", "")
        answer = login_page(wrong) if wants_page else PlainTextResponse("The password is needed.", 401)
        await answer(scope, receive, send)


def name_of(host: str) -> str:
    """`localhost` of `localhost:7860`, `::1` of `[::1]:7860`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def read_cookies(header: str) -> dict[str, str]:
    """The cookies of a request."""
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(header)
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def with_cookie(send: Send, cookie: str) -> Send:
    """Set a cookie with the answer."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return sending


def with_headers(send: Send) -> Send:
    """What every answer tells the browser: no other site frames it, nothing is guessed, no address leaks."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            headers["x-frame-options"] = "DENY"
            headers["referrer-policy"] = "no-referrer"
        await send(message)

    return sending
