// A zip without compression, as APPNOTE.TXT of PKWARE describes it: each file behind a head, and all heads again at the end.
const table = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});
const crc = (bytes) => {
  let c = ~0;
  for (const byte of bytes) c = table[(c ^ byte) & 255] ^ (c >>> 8);
  return ~c >>> 0;
};
const fields = (...pairs) => {
  const view = new DataView(new ArrayBuffer(pairs.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of pairs) {
    if (size === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
};
const UTF8 = 0x800, PLAIN = [2, 20], DAY = [2, 33]; // names' encoding; version of the format; 1 January 1980
const packed = async (files) => {
  const parts = [], heads = [];
  let at = 0, listed = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.webkitRelativePath), data = new Uint8Array(await file.arrayBuffer());
    const size = [4, data.length];
    const common = [PLAIN, [2, UTF8], [2, 0], [2, 0], DAY, [4, crc(data)], size, size, [2, name.length], [2, 0]];
    const head = fields([4, 0x04034b50], ...common);
    heads.push(fields([4, 0x02014b50], PLAIN, ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]), name);
    parts.push(head, name, data);
    at += head.byteLength + name.length + data.length;
    listed += 46 + name.length;
  }
  const count = [2, files.length];
  return [...parts, ...heads, fields([4, 0x06054b50], [2, 0], [2, 0], count, count, [4, listed], [4, at], [2, 0])];
};
element.addEventListener('change', async (event) => {
  const input = event.target, said = element.querySelector('[role=status]');
  const files = [...(input.files || [])], size = files.reduce((sum, file) => sum + file.size, 0);
  const most = Number(input.dataset.most);
  if (!files.length) return;
  if (files.length > 65000 || size > most) {
    said.textContent = `The folder holds ${files.length} files with ${(size / 2 ** 20).toFixed(1)} MiB; ` +
      `at most ${(most / 2 ** 20).toFixed(0)} MiB can be sent.`;
    return;
  }
  said.textContent = `Packing ${files.length} files…`;
  const folder = files[0].webkitRelativePath.split('/')[0];
  const zip = new File(await packed(files), `${folder}.zip`, { type: 'application/zip' });
  const sent = new DataTransfer();
  sent.items.add(zip);
  document.querySelector(`#${input.dataset.target} [aria-label="Clear"]`)?.click();
  const take = () => {
    const field = document.querySelector(`#${input.dataset.target} input[type=file]`);
    if (!field) return setTimeout(take, 100);
    field.files = sent.files;
    field.dispatchEvent(new Event('change', { bubbles: true }));
    said.textContent = '';
  };
  take();
  input.value = '';
});
