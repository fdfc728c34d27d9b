// Fetches the page again and swaps its <main>: every 2 s while a round is in progress, slower otherwise or when hidden.
// No figure passes for newer than it is: a page that cannot be swapped says so, and how old it is, every second.
(() => {
  const QUICK_MS = 2000, SLOW_MS = 15000, LATE_S = 10;
  const banner = document.getElementById("connection");
  const main = () => document.querySelector("main");
  const delay = () => (document.hidden || !main().dataset.moving ? SLOW_MS : QUICK_MS);
  const places = (root) => [...root.querySelectorAll("a, button, summary, [tabindex]")];
  // Two clocks, of which one is set by people and the other may stand while the machine sleeps. The older age counts.
  const clocks = () => [Date.now(), performance.now()];
  let swapped = clocks(), trouble = "", timer = 0;
  const age = () => Math.round(Math.max(...clocks().map((now, index) => now - swapped[index])) / 1000);

  // On paper the details are open; what is folded cannot be read there.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of folded) details.open = false; });

  if (main().dataset.still) return; // a form that somebody fills in

  // The reader's changes to the page stay: expanded details, scrolled tables, the focus of the keyboard.
  function swap(fresh) {
    const shown = main();
    const scrolled = [...shown.querySelectorAll(".scroll")].map((table) => table.scrollLeft);
    const focused = places(shown).indexOf(document.activeElement);
    for (const details of shown.querySelectorAll("details[id]")) {
      const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
      if (same) same.open = details.open;
    }
    shown.replaceWith(fresh);
    fresh.querySelectorAll(".scroll").forEach((table, index) => { table.scrollLeft = scrolled[index] ?? 0; });
    if (focused >= 0) places(fresh)[focused]?.focus({ preventScroll: true });
    swapped = clocks();
  }

  function tell() {
    const late = age() > LATE_S + delay() / 1000 ? "This page was not refreshed" : "";
    const sentence = trouble || late;
    const text = sentence && `${sentence}: what you see is ${age()} s old.`;
    if (banner.textContent !== text) banner.textContent = text;
    banner.hidden = !text;
  }

  async function refresh() {
    try {
      const reply = await fetch(location.href, {
        cache: "no-store", headers: { "X-Hemofed-Refresh": "1" }, signal: AbortSignal.timeout(10000),
      });
      if (reply.redirected) { location.reload(); return; }
      const text = await reply.text();
      if (reply.status === 503) trouble = text.trim().replace(/\.$/, "");
      else if (!reply.ok) trouble = `The aggregator answers with error ${reply.status}`;
      // A reader who marks text to copy it is not interrupted.
      else if (!getSelection().isCollapsed) trouble = "This page is held while text is selected";
      else {
        swap(document.adoptNode(new DOMParser().parseFromString(text, "text/html").querySelector("main")));
        trouble = "";
      }
    } catch {
      trouble = "The aggregator does not answer";
    }
    tell();
    timer = setTimeout(refresh, delay());
  }

  function again() { clearTimeout(timer); timer = setTimeout(refresh, 0); }
  document.addEventListener("selectionchange", () => {
    if (trouble.includes("selected") && getSelection().isCollapsed) again();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { tell(); again(); } });
  setInterval(tell, 1000);
  timer = setTimeout(refresh, delay());
})();
