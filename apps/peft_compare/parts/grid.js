// Sliders show their value at once and ask the server when they are let go; pictures come back by peftSwap.
element.addEventListener('input', (event) => {
  const slider = event.target;
  if (slider.dataset.strength !== undefined || slider.dataset.mix !== undefined) {
    slider.parentElement.querySelector('output').textContent = Number(slider.value).toFixed(2);
  }
  if (slider.dataset.wipeAt !== undefined) {
    slider.closest('.wipe').style.setProperty('--at', `${slider.value}%`);
  }
});
element.addEventListener('change', (event) => {
  const slider = event.target;
  if (slider.dataset.strength === undefined) return;
  slider.closest('tr').setAttribute('aria-busy', 'true');
  trigger('strength', { row: slider.dataset.strength, weight: Number(slider.value) });
});
element.addEventListener('click', (event) => {
  const wipe = element.querySelector('.wipe');
  const cell = event.target.closest('[data-wipe]');
  if (event.target.closest('[data-wipe-close]')) {
    wipe.hidden = true;
    wipe.opener?.focus();
    return;
  }
  const mix = event.target.closest('[data-mix-draw]');
  if (mix) {
    const weights = {};
    for (const slider of element.querySelectorAll('[data-mix]')) weights[slider.dataset.mix] = Number(slider.value);
    trigger('mix', { weights });
    return;
  }
  if (!cell || !wipe) return;
  const rows = [...element.querySelectorAll('tr[data-row]')];
  const before = rows[0].querySelector(`[data-wipe="${cell.dataset.wipe}"]`);
  if (!before || before === cell) return;
  wipe.querySelector('.before').src = before.querySelector('img').src;
  wipe.querySelector('.after').src = cell.querySelector('img').src;
  wipe.querySelector('figcaption').textContent = `${rows[0].dataset.row} on the left, ${cell.title} on the right`;
  wipe.style.setProperty('--at', '50%');
  wipe.querySelector('input').value = 50;
  wipe.hidden = false;
  wipe.opener = cell;
  wipe.querySelector('input').focus();
});
window.peftSwap = (text) => {
  if (!text) return;
  const { grid, row, pictures, said, failed } = JSON.parse(text);
  const place = document.querySelector(`#${grid} tr[data-row="${CSS.escape(row)}"]`);
  if (!place) return;
  place.removeAttribute('aria-busy');
  place.querySelectorAll('td img').forEach((picture, number) => { if (pictures[number]) picture.src = pictures[number]; });
  const words = place.querySelector('.said');
  words.textContent = said;
  words.className = `said ${failed ? 'failed' : 'quiet'}`;
};
