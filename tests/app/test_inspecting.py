"""An adapter that a stranger gives: what is taken, what is refused, and what is found out about it."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from peft_compare.inspecting import ADAPTER, CARD, EXPORTS, kind_of, look_at, unpack
from peft_compare.parts.adapter_card import adapter_card
from peft_compare.refusals import RefusedError
from peft_kernels.adapter_files import AdapterError
from tests.kernels.saved_adapters import CONFIG, WEIGHTS, edit, saved, setting
from tests.runs.saved import MODEL

MIB = 2**20


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LoRA of the embedded model."""
    folder = tmp_path_factory.mktemp("lora")
    saved(folder, "lora", model=timm.create_model(MODEL, pretrained=True), r=4)
    return folder


@pytest.fixture
def given(lora: Path, tmp_path: Path) -> Path:
    """The two files as they were uploaded."""
    return Path(shutil.copytree(lora, tmp_path / "given"))


def card_of(given: Path, out: Path, model: str | None = None) -> dict[str, Any]:
    out.mkdir()
    look_at(given, out, model, 64 * MIB)
    return json.loads((out / CARD).read_text(encoding="utf-8"))


def packed(target: Path, files: dict[str, bytes | Path]) -> Path:
    """A folder with one zip."""
    target.mkdir()
    with zipfile.ZipFile(target / "sent.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data.read_bytes() if isinstance(data, Path) else data)
    return target


def test_a_look_tells_all(given: Path, tmp_path: Path) -> None:
    card = card_of(given, tmp_path / "out")
    assert (card["stage"], card["base"], card["changes_from"]) == ("done", MODEL, "weights")
    assert card["made_with"].startswith("PEFT 0.")
    assert card["report"]["fit"]["share"] == 1.0
    assert [round(change["effective_rank"]) for change in card["changes"]] == [4] * 20
    written = {export["format"]: export["path"] for export in card["exports"]}
    assert written == {
        "peft": "exports/peft.zip",
        "merged": "exports/merged.safetensors",
        "diffusers": None,
        "kohya": None,
        "comfy": None,
    }
    assert sorted(path.name for path in (tmp_path / "out" / EXPORTS).iterdir()) == ["merged.safetensors", "peft.zip"]
    shown = adapter_card(card, "0" * 32)
    assert "42 of 42 keys match (100%)" in shown
    assert f'href="/runs/{"0" * 32}/files/out/exports/peft.zip"' in shown
    assert shown.count("disabled") == 3
    assert "and this adapter is one of a vision model</span>" in shown
    assert str(tmp_path) not in shown


def test_a_zip_of_a_folder_and_one_file_are_taken_too(lora: Path, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {f"a/b/{name}": lora / name for name in (CONFIG, WEIGHTS)}
    unpack(packed(tmp_path / "zip", {**files, "a/b/README.md": b"#", "__MACOSX/._x": b""}), tmp_path / "one", MIB)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [CONFIG, WEIGHTS]
    (tmp_path / "file").mkdir()
    shutil.copyfile(lora / WEIGHTS, tmp_path / "file" / "style.safetensors")
    unpack(tmp_path / "file", tmp_path / "two", MIB)
    assert [path.name for path in (tmp_path / "two").iterdir()] == [WEIGHTS]


def test_without_a_known_base_the_file_tells_what_it_can(lora: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": torch.randn(4, 8), f"{layer}.lora_up.weight": torch.randn(6, 4)}
    save_file(tensors, given / "style.safetensors", {"ss_network_module": "networks.lora"})
    card = card_of(given, tmp_path / "out")
    assert (card["base"], card["made_with"], card["changes_from"]) == (None, "networks.lora", "file")
    assert len(card["changes"][0]["singular"]) == 4
    assert card["exports"] == []
    shown = adapter_card(card, "0" * 32)
    assert "Norm of each weight&#x27;s change" in shown
    assert "choose one above" in shown


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc", "owner/model", "local-dir:/etc", "hf_hub:owner/model"])
def test_a_base_that_is_a_path_or_address_is_told_and_not_read(name: str, given: Path, tmp_path: Path) -> None:
    assert kind_of(name) is None
    setting(given, base_model_name_or_path=name)
    card = card_of(given, tmp_path / "out")
    assert card["base"] is None
    assert card["report"]["base_model"] == name
    assert json.loads((tmp_path / "out" / ADAPTER / CONFIG).read_text())["base_model_name_or_path"] is None
    with pytest.raises(RefusedError, match="is no model that is known here"):
        card_of(given, tmp_path / "again", name)


def test_what_does_not_merge_says_why_in_the_card(tmp_path: Path) -> None:
    saved(tmp_path / "given", "vpt", model=timm.create_model(MODEL, pretrained=True))
    card = card_of(tmp_path / "given", tmp_path / "out")
    assert all(export["path"] is None and export["reason"] for export in card["exports"])
    shown = adapter_card(card, "0" * 32)
    assert "It changes no weight that could be shown." in shown
    assert "Norm of each layer&#x27;s own tensors" in shown


def test_numbers_that_are_none_are_a_problem_and_names_are_text(given: Path, tmp_path: Path) -> None:
    edit(given, lambda tensors: tensors["base_model.model.head.bias"].fill_(torch.nan))
    setting(given, layers_pattern=None, base_model_name_or_path="<script>alert(1)</script>")
    card = card_of(given, tmp_path / "out")
    shown = adapter_card(card, "0" * 32)
    assert "head holds NaN or infinity" in shown
    assert "<script>" not in shown


HOSTILE = {
    "a header larger than the file": struct.pack("<Q", 2**60) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 8) + b"not json",
    "sizes beyond the file": struct.pack("<Q", 62)
    + b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'[:62].ljust(62),
    "nothing": b"",
    "a pickle by another name": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_files_are_one_sentence(case: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "x.safetensors").write_bytes(HOSTILE[case])
    with pytest.raises(AdapterError, match="is not a whole safetensors file") as error:
        card_of(tmp_path / "given", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_config_cannot_name_code_or_other_files(given: Path, tmp_path: Path) -> None:
    setting(given, megatron_config={"a": 1}, megatron_core="os")
    card = card_of(given, tmp_path / "out")
    assert "'megatron_config' is not accepted" in card["report"]["problems"][0]
    assert all(export["path"] is None for export in card["exports"])


REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "a pickle": ({"adapter_config.json": b"{}", "adapter_model.bin": b""}, "is a pickle, which can run code"),
    "no adapter": ({"notes.txt": b"hello"}, "no safetensors file in it"),
    "two adapters": (
        {f"{n}/adapter_{x}": b"{}" for n in "ab" for x in ("config.json", "model.safetensors")},
        "2 adapt",
    ),
    "two files": ({"a.safetensors": b"", "b.safetensors": b""}, "2 safetensors files in it"),
    "too large": ({"a.safetensors": b"\0" * 2 * MIB}, "unpacks to 2,097,152 bytes; at most 1,048,576"),
    "empty": ({}, "found nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_zips_that_are_refused(case: str, tmp_path: Path) -> None:
    files, said = REFUSED[case]
    given = packed(tmp_path / "given", dict(files))
    with pytest.raises((RefusedError, AdapterError), match=said):
        unpack(given, tmp_path / "out", MIB)


def test_names_in_a_zip_lead_nowhere(lora: Path, tmp_path: Path) -> None:
    names: dict[str, bytes | Path] = {f"../../../up/{name}": lora / name for name in (CONFIG, WEIGHTS)}
    unpack(packed(tmp_path / "given", names), tmp_path / "a" / "b" / "c" / "out", MIB)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("adapter_*"))
    assert found == ["a/b/c/out/adapter_config.json", "a/b/c/out/adapter_model.safetensors"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sent.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(RefusedError, match=r"sent.zip is no readable zip"):
        unpack(tmp_path / "bad", tmp_path / "other", MIB)
