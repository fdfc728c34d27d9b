// Fetches the page again and swaps its <main>: every 2 s while a round is in progress, slower otherwise or when hidden.
// When the aggregator does not answer, the page says so and since when, so that old figures never pass for new ones.
(() => {
  const QUICK_MS = 2000, SLOW_MS = 15000;
  const banner = document.getElementById("connection");
  const main = () => document.querySelector("main");
  const delay = () => (document.hidden || !main().dataset.moving ? SLOW_MS : QUICK_MS);
  const places = (root) => [...root.querySelectorAll("a, button, summary, [tabindex]")];
  let answered = Date.now();

  // The reader's changes to the page stay: expanded details, scrolled tables, the focus of the keyboard.
  function swap(fresh) {
    const shown = main();
    const scrolled = [...shown.querySelectorAll(".scroll")].map((table) => table.scrollLeft);
    const focused = places(shown).indexOf(document.activeElement);
    for (const details of shown.querySelectorAll("details[open][id]")) {
      fresh.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
    }
    shown.replaceWith(fresh);
    fresh.querySelectorAll(".scroll").forEach((table, index) => { table.scrollLeft = scrolled[index] ?? 0; });
    if (focused >= 0) places(fresh)[focused]?.focus({ preventScroll: true });
  }

  async function refresh() {
    try {
      const reply = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (reply.redirected) { location.reload(); return; }
      if (!reply.ok) throw new Error(String(reply.status));
      const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main");
      // A reader who marks text to copy it is not interrupted; the banner then still counts from the last swap.
      if (getSelection().isCollapsed) { swap(document.adoptNode(fresh)); answered = Date.now(); }
      banner.hidden = true;
    } catch {
      const seconds = Math.round((Date.now() - answered) / 1000);
      banner.textContent = `The aggregator has not answered for ${seconds} s. What you see is that old.`;
      banner.hidden = false;
    }
    setTimeout(refresh, delay());
  }
  setTimeout(refresh, delay());
})();
