"""PEFT's own public suite for custom models, with this project's configurations in its table of cases.

    python -m tests.kernels.peft_suite PEFT_SOURCE [pytest arguments]

PEFT_SOURCE is the unpacked source distribution of the installed release (``pip download --no-deps --no-binary :all:
peft==0.21.2``); nothing of it is kept here. Its tests run in a copy, its tables of cases replaced by the ones below.
Methods whose published start changes the function are set to start at the identity where the suite asks for that;
adapters that cannot merge fail its merge tests with the reason, and tests that load models from the hub need a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Model of the suite -> the modules that are targeted in it.
LINEAR = (("MLP", "lin0"), ("MLP", ["lin0"]), ("MLP", ["lin0", "lin1"]))
NORMS = (("MLP_LayerNorm", ["layernorm0"]), ("MLP_LayerNorm", ["layernorm0", "layernorm1"]))
OTHERS = (
    ("Conv1d", ["conv1d"]),
    ("Conv2d", ["conv2d"]),
    ("Conv2d", ["conv2d", "lin0"]),
    ("Conv2dGroups", ["conv2d"]),
    ("Conv3d", ["conv3d"]),
    ("EmbConv1D", ["emb"]),
    ("EmbConv1D", ["emb", "conv1d"]),
    ("MHA", ["mha"]),
    ("MHA", ["mha", "lin0"]),
)
CASES = {
    "SnellConfig": ({"r": 4, "sparsity": 0.3, "init": "identity"}, LINEAR + OTHERS),
    "SnellaConfig": ({"r": 4, "initial_sparsity": 0.3, "init": "identity"}, LINEAR + OTHERS),
    "SsfConfig": ({"init_std": 0.0}, LINEAR + NORMS + OTHERS),
    "BitFitConfig": ({}, LINEAR + NORMS + OTHERS[1:3]),
    "FullConfig": ({}, LINEAR + NORMS + OTHERS),
    "SlicedLoraConfig": ({}, LINEAR),
    "AdapterPlusConfig": ({"init": "lora"}, LINEAR + NORMS + OTHERS[:7]),
}
SEVERAL = ("SnellConfig", "SnellaConfig", "SsfConfig", "BitFitConfig", "FullConfig", "SlicedLoraConfig")


def tables() -> str:
    """Python source of the tables that take the place of the suite's own."""
    single, several = [], []
    for name, (fields, models) in CASES.items():
        for model, targets in models:
            fields_here = {"target_modules": targets, **fields}
            single.append(f"({f'{name} {model} {targets}'!r}, {model!r}, vp.{name}, {fields_here!r})")
    for name in SEVERAL:
        fields = {**CASES[name][0], "init_weights": False}
        for label, second in (("same", "lin0"), ("different", "lin1")):
            first, other = ({"target_modules": [layer], **fields} for layer in ("lin0", second))
            several.append(f"({f'{name} {label}'!r}, {name!r}, vp.{name}, {first!r}, {other!r})")
    classes = ", ".join(f"vp.{name}" for name in CASES)
    return (
        "import vision_peft as vp\n"
        f"TEST_CASES = [{', '.join(single)}]\n"
        f"MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [{', '.join(several)}]\n"
        f"ALL_PEFT_CONFIG_CLASSES = [{classes}]\n\n\n"
    )


def main(source: str, *arguments: str) -> int:
    """Run the suite; pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        tests = Path(folder, "tests")
        shutil.copytree(Path(source, "tests"), tests)
        (tests / "__init__.py").touch()
        suite = tests / "test_custom_models.py"
        text = suite.read_text()
        before_models = text.index("class MLP(nn.Module)")  # the tables stand before the first model
        suite.write_text(text[:before_models] + tables() + text[before_models:])
        chosen = arguments or ("-k", "TestPeftCustomModel or TestMultipleActive")
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(suite),
            "-q",
            "-p",
            "no:cacheprovider",
            "-rf",
            "--tb=line",
            *chosen,
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
