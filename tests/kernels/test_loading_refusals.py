"""Damaged, unsafe and foreign adapters are refused with one sentence before the model is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peft_kernels import registry
from peft_kernels.adapter_files import AdapterError, find_adapter, within
from peft_kernels.config import MethodConfig
from peft_kernels.loading import load_adapter
from peft_kernels.reparam import Reparam
from peft_kernels.tuner import AdapterTuner

from .saved_adapters import CONFIG, WEIGHTS, edit, saved, setting, small_model, structure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three saved adapters by name."""
    root = tmp_path_factory.mktemp("adapters")
    for name in ("lora", "snell", "bitfit"):
        saved(root / name, name)
    return root


def altered(folder: Path, old: bytes, new: bytes) -> None:
    content = (folder / WEIGHTS).read_bytes()
    assert old in content
    (folder / WEIGHTS).write_bytes(content.replace(old, new, 1))


def cut(folder: Path, keep: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])


def link(folder: Path, name: str) -> None:
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


A = "base_model.model.blocks.0.attn.qkv.lora_A.weight"  # [8, 128]

# What is done to the folder of a saved LoRA -> what the sentence must hold.
DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "cut off": (lambda f: cut(f, -5), (WEIGHTS, "expected", "bytes, found")),
    "cut off in the header": (lambda f: cut(f, 100), (WEIGHTS, "header should end at byte", "the file has 100")),
    "empty": (lambda f: cut(f, 0), (WEIGHTS, "not a whole safetensors file")),
    "more than the header says": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x"),
        (WEIGHTS, "expected", "bytes, found"),
    ),
    "altered shape in the header": (lambda f: altered(f, b"[8,128]", b"[8,129]"), (WEIGHTS,)),
    "altered key in the header": (
        lambda f: altered(f, b"blocks.0.attn.qkv.lora_A", b"blocks.0.attn.qkw.lora_A"),
        (WEIGHTS, "1 expected tensors are missing", A, "did you mean", "1 in the file are unexpected", "qkw", "%"),
    ),
    "altered type in the header": (lambda f: altered(f, b'"F32"', b'"F64"'), (WEIGHTS,)),
    "no safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(100)), (WEIGHTS, "pickle")),
    "NaN": (lambda f: edit(f, lambda t: t[A][0, :3].fill_(torch.nan)), (WEIGHTS, A, "NaN", "3 of 1,024")),
    "infinity": (lambda f: edit(f, lambda t: t[A][0, 0].fill_(torch.inf)), (WEIGHTS, A, "infinity")),
    "wrong type": (lambda f: edit(f, lambda t: t.update({A: t[A].long()})), (WEIGHTS, A, "I64", "floating-point")),
    "wrong shape": (
        lambda f: edit(f, lambda t: t.update({A: torch.zeros(8, 192)})),
        (WEIGHTS, "another model", A, "(8, 192)", "(8, 128)", "17 of 18 tensors in the file match, 94%"),
    ),
    "missing key": (lambda f: edit(f, lambda t: t.pop(A)), (WEIGHTS, "1 expected tensors are missing", A, "94%")),
    "extra key": (lambda f: edit(f, lambda t: t.update(x=torch.zeros(1))), (WEIGHTS, "1 in the file", "'x'")),
    "no keys that match": (
        lambda f: save_file({"a": torch.zeros(1)}, f / WEIGHTS),
        (WEIGHTS, "18 expected tensors are missing", "0 of 1 tensors in the file match"),
    ),
    "no config": (lambda f: (f / CONFIG).unlink(), ("there is no adapter", CONFIG)),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ("there is no adapter", WEIGHTS)),
    "pickle": (pickled, ("adapter_model.bin", "pickle", "convert")),
    "config is no JSON": (lambda f: (f / CONFIG).write_text("{"), (CONFIG, "no JSON")),
    "config is a list": (lambda f: (f / CONFIG).write_text("[]"), (CONFIG, "one JSON object", "a list")),
    "config is huge": (lambda f: (f / CONFIG).write_text(" " * 2_000_000), (CONFIG, "2,000,000")),
    "config holds NaN": (lambda f: setting(f, lora_alpha=float("nan")), (CONFIG, "NaN")),
    "unknown method": (lambda f: setting(f, peft_type="LORRA"), (CONFIG, "'LORRA'", "'LORA'")),
    "no method": (lambda f: setting(f, peft_type=None), (CONFIG, "peft_type", "None")),
    "unknown field": (lambda f: setting(f, lora_alfa=8), (CONFIG, "'lora_alfa'", "'lora_alpha'")),
    "field of a newer release": (
        lambda f: setting(f, brand_new=1, peft_version="99.1"),
        (CONFIG, "'brand_new'", "99.1"),
    ),
    "trust_remote_code": (lambda f: setting(f, trust_remote_code=True), (CONFIG, "'trust_remote_code'")),
    "field that imports": (lambda f: setting(f, megatron_config={"a": 1}), (CONFIG, "'megatron_config'", "import")),
    "wrong kind": (lambda f: setting(f, r="8"), (CONFIG, "'r'", "a number", "'8'")),
    "flag as text": (lambda f: setting(f, use_dora="no"), (CONFIG, "'use_dora'", "true or false")),
    "impossible rank": (lambda f: setting(f, r=-1), (CONFIG, "-1")),
    "target of another model": (
        lambda f: setting(f, target_modules=["q_lin"]),
        (CONFIG, "VisionTransformer", "target_modules"),
    ),
    "prompt method": (
        lambda f: (f / CONFIG).write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4})),
        (CONFIG, "PROMPT_TUNING", "PeftModel.from_pretrained"),
    ),
    "adapters elsewhere": (lambda f: setting(f, peft_type="XLORA"), (CONFIG, "XLORA", "paths")),
    "weights are a link": (lambda f: link(f, WEIGHTS), (WEIGHTS, "leads out of", "outside-")),
    "config is a link": (lambda f: link(f, CONFIG), (CONFIG, "leads out of", "outside-")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_refused_file_leaves_the_model_as_it_was(case: str, folder: Path, tmp_path: Path) -> None:
    damage, parts = DAMAGE[case]
    copy = tmp_path / "adapter"
    shutil.copytree(folder / "lora", copy)
    damage(copy)
    model = small_model().train()
    before, random = structure(model), torch.get_rng_state()
    with pytest.raises(AdapterError) as refused:
        load_adapter(model, copy)
    said = str(refused.value)
    assert "\n" not in said
    for part in parts:
        assert part in said
    assert structure(model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_adapter_for_another_model_names_shape_and_model(folder: Path) -> None:
    model = small_model(embed_dim=64)
    model.pretrained_cfg = {"architecture": "vit_nano", "classifier": "head"}  # type: ignore[assignment]
    before = structure(model)
    with pytest.raises(AdapterError, match=r"has shape \(8, 128\), expected \(8, 64\).*'vit_mini.cifar10'.*'vit_nano'"):
        load_adapter(model, folder / "lora")
    assert structure(model) == before


def test_adapter_with_another_head_says_how_many_classes(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"head.weight' has shape \(10, 128\).*num_classes=10"):
        load_adapter(small_model(num_classes=7), folder / "bitfit")


# --- places --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../lora", "/etc", "inner/../../lora"])
def test_subfolder_cannot_leave_the_folder(name: str, folder: Path) -> None:
    with pytest.raises(AdapterError, match="leads out of"):
        find_adapter(folder / "snell", subfolder=name)


def test_links_within_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1f"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(folder / "snell" / name, blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    assert find_adapter(snapshot).weights == blobs / WEIGHTS
    (snapshot / "away").symlink_to(folder)
    with pytest.raises(AdapterError, match="leads out of"):
        within(snapshot, "away")


def test_missing_place_says_what_was_looked_for(folder: Path, tmp_path: Path) -> None:
    for path, parts in {
        tmp_path / "none": ("no adapter at", "none"),
        folder / "lora" / WEIGHTS: ("is a file", CONFIG),
        Path("nobody/nothing-here"): ("'nobody/nothing-here'", "hub"),  # the tests run with the hub offline
        folder: ("adapter_config.json is missing", "did you mean", "bitfit"),
    }.items():
        with pytest.raises(AdapterError) as refused:
            find_adapter(path)
        assert all(part in str(refused.value) for part in parts), str(refused.value)


# --- indices -------------------------------------------------------------------------------------------------------
class Entries(Reparam):
    """Values at flat indices of the weight."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count))
        self.register_buffer("indices", torch.arange(count, dtype=torch.int32))

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        indices = self.get_buffer("indices").long()
        return torch.zeros_like(tensor).view(-1).index_put((indices,), self.values).view_as(tensor)


class EntriesTuner(AdapterTuner):
    """Attaches `Entries`."""

    def make_adapter(self, config: MethodConfig, key: str, base: nn.Module, rows: object) -> Entries:
        return Entries(5)


@pytest.fixture
def entries() -> Iterator[type[MethodConfig]]:
    """A method with index buffers, known for one test."""

    class EntriesConfig(MethodConfig):
        """Values at flat indices."""

    register = registry.register("entries", tuner=EntriesTuner, prefix="entries_", family="vision", summary="a test")
    yield register(EntriesConfig)
    registry._METHODS.pop("entries")
    for table in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        table.pop("ENTRIES")  # type: ignore[call-overload]


def test_index_out_of_range_is_refused(entries: type[MethodConfig], tmp_path: Path) -> None:
    config = entries(target_modules=["mlp.fc1"])
    peft.get_peft_model(small_model(), config).save_pretrained(str(tmp_path), save_embedding_layers=False)  # type: ignore[arg-type]
    load_adapter(small_model(), tmp_path)
    key = "base_model.model.blocks.0.mlp.fc1.entries_adapter.indices"
    size = 128 * 256
    for index in (size, -1):
        edit(tmp_path, lambda t, index=index: t[key].__setitem__(2, index))
        with pytest.raises(AdapterError, match=rf"{key}' holds the index {index}; expected 0 to {size - 1}"):
            load_adapter(small_model(), tmp_path)
