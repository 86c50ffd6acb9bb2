"""A field to draw in, or to put a picture into, and what every model sees there."""

from collections.abc import Sequence
from html import escape

from peft_compare.look import glyph, notice
from peft_compare.predictor import Answer

SIDE = 224

FIELD = f"""<div class="sketch"><canvas width="{SIDE}" height="{SIDE}" role="img"
aria-label="Drawing field; a picture file can be chosen instead"></canvas><div class="tools">
<label class="plain-button">Picture file<input type="file" accept="image/*" class="hidden"></label>
<button type="button" class="plain-button" data-event="clear">Clear</button>
<button type="button" class="plain-button" data-event="ask">What do they see?</button></div></div>"""

# The picture is made small here, so that no more than this canvas is sent.
DRAW = """
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d'), input = element.querySelector('input');
const clear = () => { pen.fillStyle = '#000'; pen.fillRect(0, 0, canvas.width, canvas.height); };
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return [x * canvas.width, y * canvas.height];
};
let last = null;
clear();
canvas.addEventListener('pointerdown', (event) => { last = at(event); canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener('pointermove', (event) => {
  if (!last) return;
  const next = at(event);
  Object.assign(pen, { strokeStyle: '#fff', lineWidth: 22, lineCap: 'round', lineJoin: 'round' });
  pen.beginPath(); pen.moveTo(...last); pen.lineTo(...next); pen.stroke();
  last = next;
});
const send = () => trigger('ask', { picture: canvas.toDataURL('image/png') });
const done = () => { if (last) { last = null; send(); } };
canvas.addEventListener('pointerup', done);
canvas.addEventListener('pointercancel', done);
input.addEventListener('change', async () => {
  if (!input.files.length) return;
  try {
    const picture = await createImageBitmap(input.files[0]);
    const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
    const [w, h] = [picture.width * scale, picture.height * scale];
    clear();
    pen.drawImage(picture, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
    send();
  } catch { trigger('ask', { picture: '' }); }
  input.value = '';
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-event]');
  if (!button) return;
  if (button.dataset.event === 'clear') { clear(); trigger('clear'); } else send();
});
"""


def guesses(answers: Sequence[Answer]) -> str:
    """The most likely classes by each model."""
    return f'<div class="guess" role="status">{"".join(_guess(answer) for answer in answers)}</div>'


def _guess(answer: Answer) -> str:
    rows = "".join(
        f'<li style="--share:{100 * share:.1f}%"><span>{escape(name)}</span><span>{100 * share:.1f} %</span></li>'
        for name, share in answer.top
    )
    return f'<div class="part"><h3>{glyph(answer.method)}{escape(answer.method)}</h3><ol>{rows}</ol></div>'


def waiting() -> str:
    """Before anything is drawn."""
    return notice("empty", "Draw a digit, or choose a picture.", "Every adapted model says what it sees.")
