"""What can be taken along from a run: adapters, the command line, the report, everything."""

import shlex
from html import escape
from pathlib import Path
from urllib.parse import quote

from peft_runs.compare_results import Row


def of_row(row: Row, run_id: str, out: Path) -> str:
    """The adapter of a method's first seed, its recipe, and its own report where there is one."""
    if not row.runs:
        return ""
    place = quote(row.runs[0].place)
    name = escape(row.method)
    report = ""
    if (out / row.runs[0].place / "report.html").is_file():
        report = (
            f'<br><a href="/runs/{run_id}/files/out/{place}/report.html" target="_blank" rel="noopener" '
            f'aria-label="Report of {name}">report</a>'
        )
    return (
        f'<a href="/runs/{run_id}/zip/out/{place}/adapter" download aria-label="Adapter of {name}">adapter</a><br>'
        f'<a href="/runs/{run_id}/files/out/{place}/recipe.yaml" download aria-label="Recipe of {name}">recipe</a>'
        f"{report}"
    )


def of_run(run_id: str, out: Path, program: str, words: tuple[str, ...]) -> str:
    """The report, the figures, the whole folder, and the command that repeats the run without the app."""
    known = (("report.html", "Report"), ("results.json", "Figures (JSON)"))
    links = [
        f'<a href="/runs/{run_id}/files/out/{name}" target="_blank" rel="noopener">{text}</a>'
        for name, text in known
        if (out / name).is_file()
    ]
    if (out / "report.html").is_file():
        links.append(f'<a href="/runs/{run_id}/zip/out" download>Everything (zip)</a>')
    return (
        f'<div class="part"><div class="downloads">{"".join(links)}</div>{command_line(program, words, run_id)}</div>'
    )


def command_line(program: str, words: tuple[str, ...], key: str) -> str:
    """The command, to be copied."""
    line = shlex.join([program, *words])
    return (
        f'<details data-key="command-{key}"><summary>The command that repeats this without the app</summary>'
        f'<pre class="recipe" id="command-{key}" tabindex="0">{escape(line)}</pre>'
        f'<button type="button" class="plain-button" data-do="copy" data-of="command-{key}">Copy</button></details>'
    )
