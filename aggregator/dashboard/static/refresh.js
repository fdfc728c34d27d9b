// Fetches the page again and swaps its <main>: every 2 s while something moves, slower when nothing does or nobody looks.
// When the aggregator does not answer, the page says so and since when; it never shows old figures as if they were new.
(() => {
  const QUICK_MS = 2000, SLOW_MS = 15000;
  const banner = document.getElementById("connection");
  let answered = Date.now(), unchanged = 0;

  const delay = () => (document.hidden || unchanged > 10 ? SLOW_MS : QUICK_MS);

  async function refresh() {
    try {
      const reply = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (reply.redirected) { location.reload(); return; }
      if (!reply.ok) throw new Error(String(reply.status));
      const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main");
      const shown = document.querySelector("main");
      const open = [...shown.querySelectorAll("details[open][id]")].map((each) => each.id);
      for (const id of open) { fresh.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", ""); }
      unchanged = fresh.dataset.version === shown.dataset.version ? unchanged + 1 : 0;
      if (!shown.contains(document.activeElement)) shown.replaceWith(fresh);
      answered = Date.now();
      banner.hidden = true;
    } catch {
      const seconds = Math.round((Date.now() - answered) / 1000);
      banner.textContent = `The aggregator has not answered for ${seconds} s. What you see is that old.`;
      banner.hidden = false;
    }
    setTimeout(refresh, delay());
  }
  setTimeout(refresh, QUICK_MS);
})();
