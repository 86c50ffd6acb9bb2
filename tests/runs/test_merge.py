"""A merged adapter is a plain timm model's file with the same outputs, or a refusal with the reason and no file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kernels.saved_adapters import GENERAL, saved, trained
from tests.runs.command import here
from tests.runs.saved import MODEL, base, outputs, save_all, save_base
from vision_peft.models.vit_mini import WEIGHTS

MERGING = sorted(set(GENERAL) - {"adapter_plus", "vpt"})


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder with an adapter of each method, and their logits."""
    root = tmp_path_factory.mktemp("adapters")
    return root, save_all(root)


@pytest.mark.parametrize("name", MERGING)
def test_merged_file_has_the_outputs_in_plain_timm(
    name: str, adapters: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, logits = adapters
    out = tmp_path / "merged.safetensors"
    code, said, error = here(capsys, "merge", root / name, "--out", out, "--checkpoint", root / "base.safetensors")
    assert (code, error) == (0, "")
    plain = timm.create_model(MODEL, num_classes=10, checkpoint_path=str(out))
    torch.testing.assert_close(outputs(plain), logits[name], rtol=0, atol=1e-4)
    told = re.search(r"largest difference of logits, adapted to merged: (\S+) ", said)
    assert told
    assert float(told[1]) < 1e-4
    assert f"import vision_peft; timm.create_model('{MODEL}', num_classes=10, checkpoint_path='{out}')" in said
    assert list(tmp_path.iterdir()) == [out]


def test_half_precision_is_warned_of_and_measured(
    adapters: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, _ = adapters
    words = ("merge", root / "snell", "--checkpoint", root / "base.safetensors", "--dtype", "bfloat16")
    code, said, warned = here(capsys, *words, "--out", tmp_path / "half.safetensors")
    assert code == 0
    assert "bfloat16 rounds every weight" in warned
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.bfloat16}
    assert float(re.search(r"adapted to merged: (\S+) ", said)[1]) > 1e-4  # type: ignore[index]


def test_a_model_of_points_is_merged_and_compared_on_clouds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(1)
    model = timm.create_model("point_mini").eval()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    clouds = torch.rand(2, 128, 3, generator=torch.Generator().manual_seed(2))
    adapted = trained("lora", model=model)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        logits = adapted(clouds)
    out = tmp_path / "merged.safetensors"
    words = ("merge", tmp_path / "adapter", "--out", out, "--checkpoint", tmp_path / "base.safetensors")
    code, said, error = here(capsys, *words)
    assert (code, error) == (0, "")
    assert float(re.search(r"adapted to merged: (\S+) ", said)[1]) < 1e-4  # type: ignore[index]
    plain = timm.create_model("point_mini", checkpoint_path=str(out)).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(clouds), logits, rtol=0, atol=1e-4)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the packaged weights are missing")
def test_pretrained_weights_are_the_base_where_none_is_given(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    logits = saved(tmp_path / "adapter", "lora", model=timm.create_model(MODEL, pretrained=True))
    code, _, _ = here(capsys, "merge", tmp_path / "adapter", "--out", tmp_path / "merged.safetensors")
    assert code == 0
    plain = timm.create_model(MODEL, checkpoint_path=str(tmp_path / "merged.safetensors"))
    torch.testing.assert_close(outputs(plain), logits, rtol=0, atol=1e-4)


def test_what_cannot_be_merged_says_why_and_writes_nothing(
    adapters: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, _ = adapters
    torch.save(base().state_dict(), tmp_path / "base.bin")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((root / "base.safetensors").read_bytes()[:-10])
    out, good = tmp_path / "merged.safetensors", root / "base.safetensors"
    here_before = sorted(tmp_path.iterdir())
    for words, expected, parts in (
        ((root / "adapter_plus", "--checkpoint", good), 1, ("adapter_plus", "activation function")),
        ((root / "vpt", "--checkpoint", good), 1, ("vpt", "prompts are tokens")),
        ((root / "lora", "--checkpoint", tmp_path / "base.bin"), 1, ("base.bin", "pickle", "convert")),
        ((root / "lora", "--checkpoint", tmp_path / "none"), 2, ("no file", "none")),
        ((root / "lora", "--checkpoint", tmp_path / "other.safetensors"), 1, ("not for vit_mini", "missing")),
        ((root / "lora", "--checkpoint", tmp_path / "cut.safetensors"), 1, ("not a whole safetensors file",)),
        ((root / "lora", "--checkpoint", good, "--model", "vit_mino"), 2, ("'vit_mino'", "'vit_mini'")),
        ((root / "lora", "--checkpoint", good, "--model", "test_vit"), 1, ("not for test_vit", "(128,)", "(64,)")),
        ((root / "none", "--checkpoint", good), 1, ("no adapter", "none")),
    ):
        code, said, error = here(capsys, "merge", *words, "--out", out)
        assert (code, said, error.count("\n")) == (expected, "", 0), error
        for part in parts:
            assert part in error
        assert sorted(tmp_path.iterdir()) == here_before


def test_places_to_write_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for out, part in (("x.bin", ".safetensors"), ("none/x.safetensors", "no folder"), ("", "--out")):
        code, _, error = here(capsys, "merge", tmp_path, "--out", tmp_path / out)
        assert code == 2
        assert part in error


def test_bias_that_timm_has_no_place_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file(timm.create_model("test_byobnet", num_classes=10).state_dict(), tmp_path / "base.safetensors")
    model = timm.create_model("test_byobnet", num_classes=10, checkpoint_path=str(tmp_path / "base.safetensors"))
    trained("ssf", model=model).save_pretrained(str(tmp_path / "ssf"), save_embedding_layers=False)
    words = ("--checkpoint", tmp_path / "base.safetensors", "--out", tmp_path / "out.safetensors")
    code, _, error = here(capsys, "merge", tmp_path / "ssf", *words)
    assert code == 1
    assert "bias'" in error
    assert "timm could not load" in error
    assert not (tmp_path / "out.safetensors").exists()


def test_older_file_is_replaced_only_by_a_whole_one(
    adapters: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = adapters
    out = save_base(tmp_path / "merged.safetensors")
    before = out.read_bytes()

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peft_runs.merging.save_file", fail)
    words = ("merge", root / "lora", "--checkpoint", root / "base.safetensors", "--out", out)
    code, _, error = here(capsys, *words)
    assert code == 1
    assert "no space" in error
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
