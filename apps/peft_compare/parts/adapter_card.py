"""What is known of an adapter, as one card: the file, who reads it, whether it fits, what it does, what it becomes."""

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any
from urllib.parse import quote

from peft_compare.look import notice
from peft_compare.parts.layer_strip import layer_strip, layer_table, written
from peft_compare.parts.spectra import finding, spectra
from peft_runs.adapter_words import facts

_MOST = 50  # keys of a list that is unfolded
_BUTTONS = {
    "peft": "PEFT folder",
    "diffusers": "diffusers file",
    "kohya": "kohya file",
    "comfy": "ComfyUI file",
    "merged": "Merged model",
}
_LISTS = {
    "misfits": "have another shape or type",
    "missing": "are missing in the file",
    "unexpected": "are for nothing in the model",
    "text": "are for text encoders",
}


def adapter_card(card: Mapping[str, Any], run_id: str) -> str:
    """The card as far as it is known; what is still being worked out says so."""
    report = card["report"]
    problems = "".join(notice("error", "Problem.", problem) for problem in report["problems"])
    return (
        f'<div class="adapter-card">{_facts(card)}{problems}<div class="side-by-side wide-first">'
        f"{_readers(report['readers'])}{_fit(report['fit'])}</div>{_does(card)}{_exports(card, run_id)}</div>"
    )


def _facts(card: Mapping[str, Any]) -> str:
    lines = dict(facts({**card["report"], "file": None}))
    if not card["report"]["ranks"]:  # LoRA's kin tell their rank, the others their settings
        lines.pop("ranks", None)
    made = card["made_with"] or '<span title="the file does not say">—</span>'
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines.items())
    return f'<dl class="facts">{rows}<dt>made with</dt><dd>{escape(made) if card["made_with"] else made}</dd></dl>'


def _readers(readers: Mapping[str, str]) -> str:
    if not readers:
        return notice("empty", "No program reads it:", "it holds no adapter that is known.")
    rows = []
    for program, answer in readers.items():
        short = "in part" if answer.startswith("in part") else answer.partition(":")[0]
        rest = answer.removeprefix(short).lstrip(": ")
        rows.append(
            f'<tr><th scope="row">{escape(program)}</th><td class="{short.replace(" ", "-")}">{escape(short)}</td>'
            f'<td class="why">{_code(rest)}</td></tr>'
        )
    return (
        '<div class="part"><h3>Who can read it</h3><div class="scroll" tabindex="0"><table class="data readers">'
        '<caption class="hidden">Programs that read this adapter</caption><thead><tr><th scope="col">program</th>'
        '<th scope="col">reads it</th><th scope="col">how, or why not</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _code(text: str) -> str:
    """Text with `code` between backticks."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _fit(fit: Mapping[str, Any] | None) -> str:
    if not fit:
        said = "It names no base model that is known here. Choose one to see whether it fits."
        return f'<div class="part"><h3>Does it fit</h3>{notice("empty", "Nothing to compare with.", said)}</div>'
    share = fit["share"]
    whole = fit["matched"] + sum(len(fit[name]) for name in ("misfits", "missing", "unexpected"))
    lists = "".join(_keys(fit[name], words) for name, words in _LISTS.items() if fit[name])
    return (
        f'<div class="part"><h3>Does it fit {escape(fit["model"])}</h3>'
        f'<p class="quiet">{fit["matched"]:,} of {whole:,} keys match ({share:.0%})</p>'
        f'<meter class="fit" min="0" max="1" value="{share:.4f}" aria-label="Share of keys that match"></meter>'
        f"{lists}</div>"
    )


def _keys(names: Sequence[str], words: str) -> str:
    items = "".join(f"<li><code>{escape(name)}</code></li>" for name in names[:_MOST])
    more = f"<li>and {len(names) - _MOST:,} more</li>" if len(names) > _MOST else ""
    summary = f"{len(names):,} {words}"
    return f'<details data-key="{words}"><summary>{summary}</summary><ul class="keys">{items}{more}</ul></details>'


# --- what it does --------------------------------------------------------------------------------------------------
def _does(card: Mapping[str, Any]) -> str:
    changes, report = card.get("changes"), card["report"]
    if changes is None:
        body = '<div class="skeleton" role="status">Working out what it does to the weights …</div>'
    else:
        body = _strips(card) + layer_table(report["layers"], changes)
    return f'<div class="part"><h3>What it does to the model</h3>{body}</div>'


def _strips(card: Mapping[str, Any]) -> str:
    changes, layers = card["changes"], card["report"]["layers"]
    if not changes:
        merged = next((e["reason"] for e in card.get("exports", ()) if e["format"] == "merged"), None)
        why = merged or "The file alone does not tell it, and its base model is not known here."
        values = [(layer["name"], layer["norm"]) for layer in layers]
        return notice("empty", "It changes no weight that could be shown.", why) + layer_strip(
            "Norm of each layer's own tensors", _largest(values), values
        )
    relative = [(change["name"], change["relative"]) for change in changes]
    known = card["changes_from"] == "weights" and any(value is not None for _, value in relative)
    absolute = [(change["name"], change["norm"]) for change in changes]
    ranks = [(change["name"], change["effective_rank"]) for change in changes if change["singular"]]
    first = (
        layer_strip("Change of each weight, as a share of its norm", _largest(relative, "%"), relative, "%")
        if known
        else layer_strip("Norm of each weight's change", _largest(absolute), absolute)
    )
    second = layer_strip("Effective rank of each change", finding(changes), ranks)
    return f'<div class="side-by-side"><div>{first}{second}</div>{spectra(changes)}</div>'


def _largest(values: Sequence[tuple[str, float | None]], unit: str = "") -> str:
    known = [(value, name) for name, value in values if value is not None]
    if not known:
        return ""
    value, name = max(known)
    middle = median(value for value, _ in known)
    return f"The largest is {name} with {written(value, unit)}, the median {written(middle, unit)}"


# --- what it becomes -----------------------------------------------------------------------------------------------
def _exports(card: Mapping[str, Any], run_id: str) -> str:
    if card["base"] is None:
        said = notice("empty", "No exports yet.", "They need the base model: choose one above.")
        return f'<div class="part"><h3>Take it along</h3>{said}</div>'
    rows = "".join(_export(export, run_id) for export in card.get("exports", ()))
    waiting = ""
    if card["stage"] == "exports":
        waiting = '<div class="skeleton" role="status">Writing it in each format …</div>'
    return f'<div class="part"><h3>Take it along</h3><ul class="exports">{rows}</ul>{waiting}</div>'


def _export(export: Mapping[str, Any], run_id: str) -> str:
    name, about = _BUTTONS[export["format"]], escape(export["about"].replace("`", ""))
    if export["path"] is None:
        why = f"why-{export['format']}"
        return (
            f'<li><button type="button" class="plain-button" disabled aria-describedby="{why}">{name}</button>'
            f'<span class="quiet" id="{why}">{escape(export["reason"] or "")}</span></li>'
        )
    merged = export["merged"]
    said = about
    if merged:
        error, largest = merged["difference"], merged["largest"]
        said = f"{about}; merge error {error:.2g} on probe inputs, where outputs reach {largest:.3g}"
    return (
        f'<li><a class="plain-button" href="/runs/{run_id}/files/out/{quote(export["path"])}" download>{name}</a>'
        f'<span class="quiet">{said}</span></li>'
    )
