// --- the page as a whole
const VIEWS = { 2: showTimeline, 3: showCharts, 4: showRuns, 5: showTranscript };
function setView(v) {
  go({ v });
  applyView();
}
function applyView() {
  for (let i = 1; i <= VIEW_COUNT; i++) {
    $("v" + i).hidden = i !== STATE.v;
    $("t" + i).setAttribute("aria-selected", i === STATE.v);
    $("t" + i).tabIndex = i === STATE.v ? 0 : -1;
  }
  const alone = STATE.v > 2;
  $("inspector").hidden = alone;
  document.querySelector(".split").classList.toggle("single", alone);
  if (VIEWS[STATE.v]) VIEWS[STATE.v]();
  else fillWindow();
}
function showStatic() {
  const rows = [...run.level.keys()].slice(0, STATIC_ROWS).map(i => {
    const indent = "\u00a0\u00a0".repeat(Math.min(run.level[i], 24)), mark = isError(i) ? "✗ " : "";
    const words = [run.texts[i], run.outcomes[i]].filter(Boolean).join(" → ");
    const figures = figureCells(i).map(cell => h("td", {}, cell.firstChild.textContent));
    return h("tr", {}, h("td", {}, indent, mark, h("b", {}, name(i)), " ", words), figures);
  });
  $("static").querySelector("tbody")?.replaceChildren(...rows);
}
async function showRun(place) {
  if (RUNS[place].href) { location.replace(RUNS[place].href + location.hash); return; }
  const changed = !run || run.place !== place;
  STATE.run = place;
  if (changed) {
    run = await openedRun(place);
    openAtFirst();
    showSummary();
    if (place) showStatic();
  }
  showPicker();
  applyFilters();
  showFilters();
  showRows();
  showOrder();
  applyView();
  $("q").value = STATE.q;
  search();
  showChosen(changed);
  requestAnimationFrame(() => { document.documentElement.dataset.ready = Math.round(performance.now()); });
}
function showChosen(changed) {
  const row = rowOf(STATE.e);
  if (row < 0) {
    if (run.count) showEvent(0);
    else showNothing();
    say(STATE.e ? `This run has no event “${STATE.e}”.` : "");
    return;
  }
  say("");
  if (changed && STATE.v < 3) document.body.classList.add("open");
  reveal(row);
  select(row, { inspect: true });
  if (STATE.v === 1) intoView(ensured(row) || $("grid"));
}
function flipTheme() {
  const page = document.documentElement.dataset, system = matchMedia("(prefers-color-scheme: dark)").matches;
  const dark = page.theme ? page.theme === "dark" : system;
  page.theme = dark ? "light" : "dark";
  try { localStorage.setItem("rlm-theme", page.theme); } catch { /* a browser that keeps nothing */ }
  if (STATE.v === 2) draw();
}
const FIXED_KEYS = [["↑ ↓ Home End", "Move in the tree"], ["→ ←", "Open, close, parent, cells"],
  ["Enter Space", "Show, open or close"], ["Esc", "Back"]];
function showLegend() {
  const line = ([keys, does]) =>
    [h("dt", {}, keys.split(" ").map(key => [h("kbd", {}, key), " "])), h("dd", {}, does)];
  const does = item => item.dataset.does || item.getAttribute("aria-label") || item.textContent;
  const shortcuts = [...document.querySelectorAll("[data-shortcut]")].map(item => [item.dataset.shortcut, does(item)]);
  $("legend").querySelector("dl").replaceChildren(...[...shortcuts, ...FIXED_KEYS].flatMap(line));
  $("legend").showModal();
}
function pressed(event) {
  const inField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  const held = event.ctrlKey || event.metaKey || event.altKey;
  if ((event.ctrlKey || event.metaKey) && event.key === "p") printAll();
  else if (event.key === "Escape") leave(event.target);
  else if (inField || held || $("legend").open) return;
  else if (event.key === "j" || event.key === "k") nextRow(event.key);
  else if (!pressShortcut(event.key)) return;
  event.preventDefault();
}
function leave(target) {
  if ($("legend").open) { $("legend").close(); return; }
  document.body.classList.remove("open");
  $("found").hidden = $("offer").hidden = true;
  for (const open of document.querySelectorAll("#tools [open]")) open.open = false;
  if (target === $("q")) focusRow(Math.max(0, rowOf(STATE.e)));
}
function nextRow(key) {
  const row = rowOf(STATE.e), focus = STATE.v === 1;
  if (row >= 0) step(row, key === "j" ? 1 : -1, -1);
  else if (run.visible.length) select(run.visible[0], { focus });
  if (STATE.v === 2) draw();
}
async function printAll() {
  await fillPrint();
  window.print();
}
function pressShortcut(key) {
  const wanted = [...document.querySelectorAll("[data-shortcut]")].find(item => item.dataset.shortcut === key);
  if (wanted) wanted.matches("input") ? wanted.focus() : wanted.click();
  return Boolean(wanted);
}
function listen() {
  const clicks = { theme: flipTheme, help: showLegend, errors: nextError,
    next: () => nextHit(1), prev: () => nextHit(-1),
    expand: () => setAll(true), fold: () => setAll(false),
    csv: () => save(asCsv(), run.meta.id + ".csv", "text/csv"),
    speedscope: () => save(asSpeedscope(), run.meta.id + ".speedscope.json", "application/json"),
    paper: printAll, offer: traceSelected,
    trace: () => save(asTrace(), run.meta.id + ".trace.json", "application/json") };
  for (const [id, act] of Object.entries(clicks)) $(id).onclick = act;
  for (let v = 1; v <= VIEW_COUNT; v++) $("t" + v).onclick = () => setView(v);
  $("pick").onchange = () => pickRun(+$("pick").value);
  $("q").addEventListener("input", typed);
  $("q").addEventListener("keydown", event => { if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1); });
  for (const head of document.querySelectorAll("#grid [data-sort]")) head.onclick = () => sortBy(head.dataset.sort);
  $("q").addEventListener("focus", () => { if (STATE.q) showFound(); });
  document.addEventListener("focusin", event => { if (!event.target.closest(".find")) $("found").hidden = true; });
  document.addEventListener("pointerdown", event => { if (!event.target.closest(".find")) $("found").hidden = true; });
  document.addEventListener("selectionchange", offerTrace);
  addEventListener("beforeprint", fillPrint);
  matchMedia("print").addEventListener("change", event => { if (event.matches) fillPrint(); });
  document.querySelector("[role=tablist]").addEventListener("keydown", tabKey);
  $("rows").addEventListener("keydown", gridKey);
  $("rows").addEventListener("click", gridClick);
  addEventListener("scroll", fillWindow, { passive: true });
  addEventListener("resize", () => { fillWindow(); draw(); });
  addEventListener("keydown", pressed);
  addEventListener("popstate", () => showRun(readHash()));
}
let typing = 0;
function typed() {
  clearTimeout(typing);
  typing = setTimeout(() => { go({ q: $("q").value }, false); search(); }, 140);
}
function tabKey(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  setView((STATE.v + by + VIEW_COUNT - 1) % VIEW_COUNT + 1);
  $("t" + STATE.v).focus();
}
if (RUNS.length) { listen(); showRun(readHash()); }
else document.documentElement.className = "";
if (DATA.live) followLog();
