// What the page does by itself: light and dark, sorting, copying, and the address of the open run.
(() => {
  const dark = (on) => { document.body.classList.toggle("dark", on); };
  const wanted = () => localStorage.getItem("peft-look");
  const apply = () => { const look = wanted(); if (look) dark(look === "dark"); };
  window.addEventListener("DOMContentLoaded", () => {
    apply();
    // Gradio sets its own class when it has started; the visitor's choice comes over it, once.
    const watcher = new MutationObserver(apply);
    watcher.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    setTimeout(() => watcher.disconnect(), 5000);
  });

  const sort = (button) => {
    const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const place = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => { const cell = row.children[place]; return cell ? cell.dataset.value ?? cell.textContent : ""; };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)], [m, n] = [parseFloat(x), parseFloat(y)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
      return down ? -order : order;
    });
    body.append(...rows);
  };

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-do]");
    if (!target) return;
    if (target.dataset.do === "sort") sort(target);
    if (target.dataset.do === "look") {
      const on = !document.body.classList.contains("dark");
      localStorage.setItem("peft-look", on ? "dark" : "light");
      dark(on);
    }
    if (target.dataset.do === "copy") {
      navigator.clipboard.writeText(document.getElementById(target.dataset.of).textContent);
      const before = target.textContent;
      target.textContent = "Copied";
      setTimeout(() => { target.textContent = before; }, 1500);
    }
  });

  // What somebody has unfolded stays so when the page writes it anew.
  const unfolded = new Set();
  document.addEventListener("toggle", (event) => {
    const key = event.target.dataset?.key;
    if (key) { if (event.target.open) unfolded.add(key); else unfolded.delete(key); }
  }, true);
  window.addEventListener("DOMContentLoaded", () => {
    new MutationObserver(() => {
      for (const one of document.querySelectorAll("details[data-key]:not([open])")) one.open = unfolded.has(one.dataset.key);
    }).observe(document.body, { childList: true, subtree: true });
  });

  // ?tab=...&run=... always names what is open, so that the address can be kept and passed on.
  window.peftAddress = (names) => {
    const address = new URL(location.href);
    for (const [name, value] of Object.entries(names)) {
      if (value) address.searchParams.set(name, value); else address.searchParams.delete(name);
    }
    if (address.href !== location.href) history.pushState({}, "", address);
  };
  // The first tab selects itself when the page is built; until the address has been read, that is not the visitor's.
  window.peftTab = (tab) => { if (window.peftArrived) window.peftAddress({ tab }); };
  window.addEventListener("popstate", () => location.reload());
})();
