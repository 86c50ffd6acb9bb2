"""Triton kernels in processes of their own: the interpreter is chosen when Triton is imported."""

import os
import subprocess
import sys


def check(code: str, *devices: str, **environment: str) -> None:
    """Run the code, in which ``{devices}`` stands for the devices, and show what it says where it fails."""
    run = subprocess.run(
        [sys.executable, "-c", code.replace("{devices}", str(devices))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
