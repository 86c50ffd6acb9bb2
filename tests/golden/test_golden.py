"""Every committed vector is reproduced, and the harness fails where it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .__main__ import main
from .comparison import Tolerance, compare
from .harness import check
from .table import TABLE

HERE = Path(__file__).parent
FILES = sorted(path for path in HERE.glob("*/*.safetensors") if not path.stem.endswith(".weights"))  # inputs of others
CASE = HERE / "snell" / "gate_s030.safetensors"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_vectors_are_reproduced(path: Path) -> None:
    lines = check(path, TABLE)
    assert lines
    assert not [str(line) for line in lines if not line.ok]


def test_every_kind_has_a_committed_file() -> None:
    kinds = set()
    for path in FILES:
        with safe_open(path, framework="pt") as file:
            kinds.add((file.metadata()["golden.method"], file.metadata()["golden.kind"]))
    assert kinds == set(TABLE)


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of one case with other tensors or metadata."""

    def write(change: Callable[[dict[str, Tensor]], object] = dict, **metadata: str) -> Path:
        with safe_open(CASE, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            kept = {key: value for key, value in {**file.metadata(), **metadata}.items() if value}
        change(tensors)
        path = tmp_path / "altered.safetensors"
        save_file(tensors, path, metadata=kept)
        return path

    return write


def scaled(name: str, factor: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].mul_(factor)


@pytest.mark.parametrize("name", ["output.y", "output.threshold", "grad.A", "grad.x"])
def test_altered_expected_tensor_fails(
    name: str, altered: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(altered(scaled(name, 1 + 1e-8)))]) == 1
    *lines, counts = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.endswith("FAIL")]
    assert failed
    assert all(f" {name} " in line for line in failed)
    assert counts.endswith(f"{len(failed)} FAIL")


@pytest.mark.parametrize("name", ["param.A", "input.x", "base.weight", "buffer.coeff"])
def test_altered_input_fails(name: str, altered: Callable[..., Path]) -> None:
    assert main([str(altered(scaled(name, 1 + 1e-6)))]) == 1


def test_altered_option_fails(altered: Callable[..., Path]) -> None:
    with safe_open(CASE, framework="pt") as file:
        options = json.loads(file.metadata()["case"])
    assert main([str(altered(case=json.dumps({**options, "sparsity": 0.4})))]) == 1


def test_unaltered_copy_passes(altered: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(altered())]) == 0
    *lines, counts = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" ok") for line in lines)
    assert counts == f"{len(lines)} compared in 1 files: {len(lines)} ok, 0 FAIL"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"golden.kind": "deltas"}, "unknown kind snell/deltas; the nearest known one is snell/delta"),
        ({"golden.method": "snail"}, "unknown kind snail/delta"),
        ({"golden.kind": ""}, "the metadata lack golden.kind"),
    ],
)
def test_unknown_kind_fails(
    metadata: dict[str, str], reason: str, altered: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(altered(**metadata))]) == 1
    assert reason in capsys.readouterr().out


def test_nothing_compared_fails(altered: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def inputs_only(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(("output.", "grad."))]:
            del tensors[name]

    assert main([str(altered(inputs_only))]) == 1
    assert "nothing to compare" in capsys.readouterr().out


def test_expected_tensor_that_nothing_computes_fails(altered: Callable[..., Path]) -> None:
    lines = check(altered(lambda tensors: tensors.update({"output.extra": torch.ones(1)})), TABLE)
    [failed] = [line for line in lines if not line.ok]
    assert failed.reason == "not computed"


def test_case_that_cannot_be_rebuilt_fails(altered: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(altered(lambda tensors: tensors.pop("param.B")))]) == 1
    assert "not rebuilt: KeyError" in capsys.readouterr().out


def test_unreadable_file_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.safetensors").write_bytes(CASE.read_bytes()[:100])
    assert main([str(tmp_path / "broken.safetensors"), str(tmp_path / "missing.safetensors"), str(CASE)]) == 1
    assert capsys.readouterr().out.count("cannot be read") == 2


def test_weights_alone_are_not_a_comparison(altered: Callable[..., Path]) -> None:
    weights = altered(**{"golden.kind": "weights"})
    assert check(weights, TABLE) == []
    assert main([str(weights)]) == 1
    assert main([str(weights), str(CASE)]) == 0


@pytest.mark.parametrize(
    ("found", "expected", "ok"),
    [
        (torch.zeros(2), torch.zeros(2), True),
        (torch.tensor([0.0, 1e-30]), torch.zeros(2), False),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), False),
        (torch.ones(2), torch.tensor([1.0, float("nan")]), False),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([2.0, float("nan")]), torch.tensor([1.0, float("nan")]), False),
        (torch.ones(2, 1), torch.ones(2), False),
        (torch.ones(2, dtype=torch.float64), torch.ones(2), False),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), True),
        (torch.tensor([1_000_000_001]), torch.tensor([1_000_000_000]), False),
        (torch.empty(0), torch.empty(0), True),
    ],
)
def test_comparison_is_strict(found: Tensor, expected: Tensor, ok: bool) -> None:
    assert compare("tensor", found, expected, Tolerance(1e-6)).ok is ok


def test_absolute_tolerance_is_of_the_difference() -> None:
    found, expected = torch.tensor([0.1]), torch.tensor([0.2])
    assert compare("tensor", found, expected, Tolerance(0.2, absolute=True)).ok
    assert not compare("tensor", found, expected, Tolerance(0.2)).ok
