"""How the app looks: one set of colours for light and dark, the same as the reports', and no font from elsewhere."""

import hashlib
from html import escape
from inspect import signature
from pathlib import Path

import gradio as gr
from starlette.responses import HTMLResponse

from peft_runs.figure_style import SHADES, marker_outline, shade

HERE = Path(__file__).resolve().parent
NAME = "vision-diffusion-peft"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's components in the page's colours (`style.css` holds those, for light and dark)."""
    chosen = gr.themes.Base(font=FONT, font_mono=MONO, radius_size=gr.themes.sizes.radius_md)
    pairs = {
        "body_background_fill": "var(--ground)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--quiet)",
        "background_fill_primary": "var(--card)",
        "background_fill_secondary": "var(--card)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--line)",
        "block_label_background_fill": "var(--card)",
        "block_label_text_color": "var(--quiet)",
        "block_title_text_color": "var(--ink)",
        "block_info_text_color": "var(--quiet)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "color_accent_soft": "var(--code)",
        "input_background_fill": "var(--card)",
        "input_border_width": "1px",
        "input_border_color": "var(--edge)",
        "input_placeholder_color": "var(--quiet)",
        "checkbox_background_color": "var(--card)",
        "checkbox_border_color": "var(--edge)",
        "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color_selected": "var(--accent)",
        "checkbox_label_background_fill": "transparent",
        "checkbox_label_background_fill_hover": "var(--code)",
        "checkbox_label_background_fill_selected": "var(--code)",
        "checkbox_label_text_color_selected": "var(--ink)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent-deep)",
        "button_primary_border_color": "var(--accent)",
        "button_primary_text_color": "var(--on-accent)",
        "button_secondary_background_fill": "var(--card)",
        "button_secondary_background_fill_hover": "var(--code)",
        "button_secondary_border_color": "var(--edge)",
        "button_secondary_text_color": "var(--ink)",
        "slider_color": "var(--accent)",
        "link_text_color": "var(--accent)",
    }
    settable = signature(gr.themes.Base.set).parameters
    dark = {f"{name}_dark": value for name, value in pairs.items() if f"{name}_dark" in settable}
    return chosen.set(**pairs, **dark)


def css() -> str:
    """The page's style: the methods' colours, then `style.css` and `diffusion.css`."""
    light, dark = (
        "".join(f"--method-{place}:{pair[ground]};" for place, pair in enumerate(SHADES)) for ground in (0, 1)
    )
    return f":root{{{light}}}.dark{{{dark}}}" + "".join(
        (HERE / name).read_text(encoding="utf-8") for name in ("style.css", "diffusion.css")
    )


def script() -> str:
    """The page's own script, for its head."""
    return f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>"


def glyph(method: str) -> str:
    """The method's marker in its colour."""
    return (
        f'<svg class="glyph" viewBox="0 0 10 10" aria-hidden="true"><path d="{marker_outline(method)}" '
        f'fill="var(--method-{shade(method)})"/></svg>'
    )


def scroll(label: str, inner: str) -> str:
    """What is too wide for a narrow page and scrolls inside itself, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inner}</div>'


def notice(kind: str, title: str, said: str, technical: str = "") -> str:
    """A box: `empty`, `error` or `kept`; the technical text folds open."""
    folded = ""
    if technical:
        key = f"technical-{hashlib.sha256(technical.encode()).hexdigest()[:8]}"
        folded = (
            f'<details data-key="{key}"><summary>Technical details</summary><pre id="{key}">{escape(technical)}</pre>'
            f'<button type="button" class="plain-button" data-do="copy" data-of="{key}">Copy</button></details>'
        )
    role = "alert" if kind == "error" else "note"
    return (
        f'<div class="notice {kind}" role="{role}"><strong>{escape(title)}</strong> <span>{escape(said)}</span>'
        f"{folded}</div>"
    )


def login_page(wrong: bool) -> HTMLResponse:
    """The page that asks for the password."""
    said = '<p class="wrong" role="alert">That is not the password.</p>' if wrong else ""
    return HTMLResponse(
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{NAME}</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0 16px; }}
form {{ width: min(22rem, 100%); }} input, button {{ font: inherit; width: 100%; box-sizing: border-box;
padding: 10px 12px; margin: 6px 0; border-radius: 8px; border: 1px solid #767d86; }}
button {{ background: #2563a8; color: #fff; border-color: #2563a8; }} .wrong {{ color: #b3261e; }}
</style></head><body><form method="post" action="/login"><h1>{NAME}</h1>{said}
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form></body></html>""",
        401,
    )
