"""Fields to draw what steers: lines for edges, areas for colours; or one picture of which both are taken."""

from html import escape

SIDE = 192
INKS = ("#ffffff", "#e53935", "#fb8c00", "#fdd835", "#43a047", "#1e88e5", "#8e24aa", "#6d4c41", "#000000")
NAMES = ("white", "red", "orange", "yellow", "green", "blue", "purple", "brown", "black")


def hint_fields() -> str:
    """Both fields, and the button for a picture."""
    inks = "".join(
        f'<button type="button" data-ink="{ink}" style="background:{ink}" aria-label="{name}" '
        f'aria-pressed="{str(name == "red").lower()}"></button>'
        for ink, name in zip(INKS, NAMES, strict=True)
    )
    return (
        f'<div class="hints">{_field("edges", "Edges: draw lines", "")}{_field("colors", "Colours: draw areas", inks)}'
        '<div class="tools"><label class="plain-button">A picture instead<input type="file" accept="image/*" '
        'class="hidden" aria-label="A picture that steers"></label></div></div>'
    )


def _field(name: str, label: str, inks: str) -> str:
    clear = f'<button type="button" class="plain-button" data-clear="{name}">Clear</button>'
    return (
        f'<div class="hint-field"><h4>{escape(label)}</h4><canvas width="{SIDE}" height="{SIDE}" data-hint="{name}" '
        f'role="img" aria-label="{escape(label)}; a picture file can be chosen instead"></canvas>'
        f'<div class="inks">{inks}{clear}</div></div>'
    )


# Pictures are made small here, so that no more than a canvas is sent.
SCRIPT = """
const width = { edges: 5, colors: 26 };
let ink = '#e53935', last = null;
const clear = (canvas) => {
  const pen = canvas.getContext('2d');
  pen.fillStyle = '#000';
  pen.fillRect(0, 0, canvas.width, canvas.height);
};
const send = (canvas) => trigger('hint', { name: canvas.dataset.hint, picture: canvas.toDataURL('image/png') });
const at = (canvas, event) => {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return [x * canvas.width, y * canvas.height];
};
for (const canvas of element.querySelectorAll('canvas')) {
  clear(canvas);
  const name = canvas.dataset.hint;
  canvas.addEventListener('pointerdown', (event) => {
    last = at(canvas, event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!last) return;
    const pen = canvas.getContext('2d'), next = at(canvas, event);
    const colour = name === 'edges' ? '#fff' : ink;
    Object.assign(pen, { strokeStyle: colour, lineWidth: width[name], lineCap: 'round', lineJoin: 'round' });
    pen.beginPath(); pen.moveTo(...last); pen.lineTo(...next); pen.stroke();
    last = next;
  });
  const done = () => { if (last) { last = null; send(canvas); } };
  canvas.addEventListener('pointerup', done);
  canvas.addEventListener('pointercancel', done);
}
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-ink]'), cleared = event.target.closest('[data-clear]');
  if (chosen) {
    ink = chosen.dataset.ink;
    element.querySelectorAll('[data-ink]').forEach((one) => one.setAttribute('aria-pressed', String(one === chosen)));
  }
  if (cleared) {
    clear(element.querySelector(`[data-hint="${cleared.dataset.clear}"]`));
    trigger('hint', { name: cleared.dataset.clear, picture: '' });
  }
});
element.querySelector('input').addEventListener('change', async (event) => {
  const file = event.target.files[0];
  if (!file) return;
  try {
    const picture = await createImageBitmap(file);
    const small = document.createElement('canvas');
    small.width = small.height = 512;
    const pen = small.getContext('2d'), side = Math.min(picture.width, picture.height);
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, 512, 512);
    pen.drawImage(picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, 512, 512);
    for (const canvas of element.querySelectorAll('canvas')) {
      canvas.getContext('2d').drawImage(small, 0, 0, canvas.width, canvas.height);
    }
    trigger('hint', { name: 'image', picture: small.toDataURL('image/png') });
  } catch { trigger('hint', { name: 'image', picture: '' }); }
  event.target.value = '';
});
"""
