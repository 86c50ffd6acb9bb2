"""Recognise an adapter by the keys of its file: whose naming, which method, and which tensors belong to one layer.

Nothing is known beforehand: files are found on the net without the program that wrote them. The names are those of
PEFT 0.21, diffusers 0.42, sd-scripts (kohya) and LyCORIS 4.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from peft_kernels.registry import methods
from peft_kernels.tensors import CHILD

PEFT_ROOT = "base_model.model."
# Whose naming -> how its keys begin.
NAMINGS = {
    "PEFT": re.escape(PEFT_ROOT),
    "kohya": r"lora_(unet|te\d?|transformer|prior_unet|prior_te)_",
    "LyCORIS": r"lycoris_",
    "diffusers": r"(unet|prior|transformer(_\d)?|text_encoder(_\d)?)\.",
    "ComfyUI": r"(diffusion_model|text_encoders)\.",
}
DOWN, UP, MID, ALPHA, DORA_SCALE = "down", "up", "mid", "alpha", "dora_scale"
# Method, part and how the key ends, in the files of other programs; the text before it is the layer.
_ENDINGS = (
    ("LoRA", DOWN, r"\.lora_(A|down)\.weight"),
    ("LoRA", UP, r"\.lora_(B|up)\.weight"),
    ("LoRA", DOWN, r"(_lora|\.lora|\.lora_linear_layer)\.down\.weight"),
    ("LoRA", UP, r"(_lora|\.lora|\.lora_linear_layer)\.up\.weight"),
    ("LoRA, Tucker", MID, r"\.lora_mid\.weight"),
    ("DoRA", DORA_SCALE, r"\.dora_scale"),
    ("DoRA", "lora_magnitude_vector", r"\.lora_magnitude_vector(\.weight)?"),
    ("LoHa", None, r"\.hada_(w[12]_[ab]|t[12])"),
    ("LoKr", None, r"\.lokr_(w[12](_[ab])?|t[12])"),
    ("GLoRA", None, r"\.(a1|a2|b1|b2|bm)\.weight"),
    ("OFT", None, r"\.(oft_blocks|rescale)"),
    ("IA3", None, r"\.on_input"),
    ("T-LoRA", None, r"\.([qp]_layer\.weight|lambda_layer)"),
    ("full difference", None, r"\.diff(_b)?"),
    ("norm difference", None, r"\.[wb]_norm"),
    (None, ALPHA, r"\.alpha"),
)
# The first dimension of these parts is the rank.
RANK_PARTS = (DOWN, "lora_A", "lora_embedding_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "q_layer.weight")


@dataclass
class Recognised:
    """What the keys of a file tell.

    Attributes:
        naming: whose names they are, a key of `NAMINGS`, or ``"unknown"``.
        kinds: methods by their usual names; empty where the file holds no adapter that is known.
        layers: the adapter's keys, by layer and part.
        full: keys of modules and parameters that were trained in full, by module.
        others: keys that are none of this.
    """

    naming: str
    kinds: list[str] = field(default_factory=list)
    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    full: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def recognise(keys: Iterable[str]) -> Recognised:
    """Sort the keys of a file."""
    keys = sorted(keys)
    votes = Counter(name for key in keys for name, start in NAMINGS.items() if re.match(start, key))
    naming = votes.most_common(1)[0][0] if votes else "unknown"
    found = _peft(keys) if naming == "PEFT" else _other(keys, naming)
    return found if found.kinds or naming == "PEFT" else Recognised("unknown", others=keys)


def _peft(keys: list[str]) -> Recognised:
    methods()  # registers the prefixes of all methods
    prefixes: dict[str, str] = {}
    for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if prefix:  # methods that build on another share its prefix (AdaLoRA, X-LoRA): the plain one is meant
            prefixes[prefix] = min(str(kind.value), prefixes.get(prefix, str(kind.value)), key=len)
    found, kinds = Recognised("PEFT"), Counter()
    for key in keys:
        path = key.removeprefix(PEFT_ROOT).split(".")
        place = next((i for i, name in enumerate(path) if _prefix(name, prefixes)), None)
        if place is None or CHILD in path:
            owner = path[:-1] if CHILD not in path else path[: path.index(CHILD)] + path[-1:]
            found.full.setdefault(".".join(owner) or path[-1], []).append(key)
            continue
        kinds[prefixes[_prefix(path[place], prefixes)]] += 1
        part = ".".join(path[place:]).removesuffix(".weight")
        found.layers.setdefault(".".join(path[:place]), {})[part] = key
    found.kinds = [name for name, _ in kinds.most_common()]
    return found


def _prefix(name: str, prefixes: Mapping[str, str]) -> str:
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")


def _other(keys: list[str], naming: str) -> Recognised:
    found, kinds = Recognised(naming), Counter()
    for key in keys:
        for kind, part, ending in _ENDINGS:
            hit = re.search(f"{ending}$", key)
            if hit:
                found.layers.setdefault(key[: hit.start()], {})[part or hit.group().lstrip(".")] = key
                kinds.update([kind] if kind else [])
                break
        else:
            found.others.append(key)
    found.kinds = [kind for kind, _ in kinds.most_common()]
    if not found.kinds:  # a lone `.alpha` is some model's own parameter
        found.others, found.layers = keys, {}
    return found
