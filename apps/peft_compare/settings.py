"""What the app may use: where runs lie, how much they may take, and who may reach it."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from peft_compare.refusals import RefusedError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one machine lends to its visitors.

    Attributes:
        waiting: runs that may wait in the queue.
        runs_bytes: size of the folder of runs; beyond it the oldest finished runs are removed.
        upload_bytes: size of one uploaded file.
        pictures: pictures in one upload.
        pixels: of one picture.
        unpacked_bytes: of one upload, unpacked.
        seconds: to check one upload.
    """

    waiting: int = 20
    runs_bytes: int = 4096 * MIB
    upload_bytes: int = 64 * MIB
    pictures: int = 5000
    pixels: int = 24_000_000
    unpacked_bytes: int = 256 * MIB
    seconds: float = 60.0


@dataclass(frozen=True)
class Settings:
    """One server.

    Attributes:
        runs: folder of all runs and uploads.
        host: address it binds.
        port: 0 takes a free one.
        hosts: further names it may be called by.
        password: asked of everyone, where there is one.
        jobs: runs at the same time.
    """

    runs: Path
    host: str = "127.0.0.1"
    port: int = 7860
    hosts: tuple[str, ...] = ()
    password: str | None = None
    jobs: int = 1
    limits: Limits = field(default_factory=Limits)

    def check_model(self, name: str) -> None:
        """Refuse a folder of this machine as a model's name, where not only this machine's own people ask.

        Raises:
            RefusedError: it names a folder.
        """
        if loopback(self.host):
            return
        from diffusion_peft.embedded import NAMES  # seconds, which workers and the command's help need not wait

        if name.startswith("local-dir:") or (name not in NAMES and Path(name).expanduser().exists()):
            raise RefusedError(f"{name!r} is a folder of the machine that serves this page: choose a model by its name")

    @property
    def known_hosts(self) -> frozenset[str]:
        """Names that a request's `Host` may hold, without the port."""
        here = {"127.0.0.1", "localhost", "::1"} if loopback(self.host) else {self.host}
        return frozenset({*here, *self.hosts} - {"0.0.0.0", "::"})


def loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
