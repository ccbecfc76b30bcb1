// --- the runs of the page
const LIST = { by: "", up: false, words: "", status: "", ticked: new Set() };
const COLUMNS = [
  ["Run", meta => meta.id, "mono"], ["Question", meta => firstLine(meta.question), "l"],
  ["Answer", meta => firstLine(meta.answer || "").replace(/\*\*|`/g, ""), "l"], ["Status", meta => meta.status],
  ["Model", meta => meta.model || ""], ["Started", meta => (meta.started || "").slice(0, 16).replace("T", " ")],
  ["Duration", meta => meta.duration_ms, "n", duration], ["Calls", meta => meta.calls, "n", number],
  ["Errors", meta => meta.errors, "n", number], ["Tokens", meta => meta.tokens, "n", number],
  ["Cost", meta => meta.cost_usd ?? (meta.cost_known || null), "n"],
];
function showRuns() {
  const chosen = STATE.c.split("~").map(id => RUNS.findIndex(meta => meta.id === id));
  const pair = chosen.length === 2 && chosen.every(place => place >= 0) ? chosen : DATA.diff ? [0, 1] : null;
  if (!$("runs")) $("v4").replaceChildren(h("div", { id: "diff" }), h("div", { id: "runs" }));
  $("diff").hidden = !pair;
  if (pair && $("diff").shown !== pair.join()) {
    $("diff").shown = pair.join();
    showComparison(...pair);
  }
  showRunList();
}
function showRunList() {
  const statuses = [...new Set(RUNS.map(meta => meta.status))];
  const words = h("input", { type: "search", "aria-label": "Filter runs", placeholder: "Filter runs",
    value: LIST.words, oninput: event => { LIST.words = event.target.value; fillRuns(); } });
  const onchange = event => { LIST.status = event.target.value; fillRuns(); };
  const status = h("select", { "aria-label": "Status", onchange }, h("option", { value: "" }, "any status"),
    statuses.map(value => h("option", { value }, value)));
  status.value = LIST.status;
  const both = button("Compare", compareTicked, { id: "compare", disabled: "" });
  const listed = h("span", { class: "note", id: "listed" });
  $("runs").replaceChildren(h("div", { class: "v4row" }, words, status, both, listed), h("div", { id: "list" }));
  fillRuns();
}
function listedRuns() {
  const wanted = LIST.words.toLowerCase(), column = COLUMNS.find(([title]) => title === LIST.by);
  const shown = RUNS.map((meta, place) => ({ meta, place })).filter(({ meta }) =>
    (!LIST.status || meta.status === LIST.status) &&
    `${meta.id} ${meta.question} ${meta.answer || ""} ${meta.model || ""}`.toLowerCase().includes(wanted));
  const order = (a, b) => typeof a === "number" || typeof b === "number" ? (a ?? -1) - (b ?? -1)
    : String(a).localeCompare(String(b));
  return column ? shown.sort((a, b) => (LIST.up ? 1 : -1) * order(column[1](a.meta), column[1](b.meta))) : shown;
}
function fillRuns() {
  const shown = listedRuns(), title = `${counted(shown.length, "run")}${LIST.by ? "" : ", newest first"}`;
  const heads = COLUMNS.map(([word, , look]) => h("th", { scope: "col", class: look === "n" ? "" : "l",
    "aria-sort": LIST.by === word ? LIST.up ? "ascending" : "descending" : null }, button(word, () => sortRuns(word),
    { class: "sort" })));
  const table = h("table", { class: "runs" }, h("caption", { class: "vh" }, title),
    h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "vh" }, "Compare")), heads)),
    h("tbody", {}, shown.map(({ meta, place }) => runLine(meta, place))));
  $("list").replaceChildren(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table));
  $("listed").textContent = title;
  $("compare").disabled = LIST.ticked.size !== 2;
}
function sortRuns(word) {
  const again = LIST.by === word;
  Object.assign(LIST, again && LIST.up ? { by: "" } : { by: word, up: again });
  fillRuns();
}
function runLine(meta, place) {
  const tick = h("input", { type: "checkbox", "aria-label": "Compare " + meta.id, onchange: event => {
    LIST.ticked[event.target.checked ? "add" : "delete"](place);
    $("compare").disabled = LIST.ticked.size !== 2;
  } });
  tick.checked = LIST.ticked.has(place);
  const cells = COLUMNS.map(([title, value, look, format]) => {
    const attributes = { class: look === "n" ? "" : "l", "data-label": title };
    return h("td", attributes, runCell(title, meta, place, value(meta), format));
  });
  return h("tr", { class: place === STATE.run ? "on" : "" }, h("td", { class: "tick" }, tick), cells);
}
function runCell(title, meta, place, value, format) {
  if (title === "Run") return button(meta.id, () => pickRun(place), { class: "link mono" });
  if (title === "Status") return h("span", { class: "badge " + meta.status }, meta.status);
  if (title === "Cost") return meta.cost_usd === null ? money(meta.cost_known || 0, 1) : money(meta.cost_usd ?? 0);
  if (format) return typeof value === "number" ? format(value) : "?";
  return h("span", { dir: "auto" }, value.slice(0, 120));
}
function compareTicked() {
  const [a, b] = [...LIST.ticked].sort((one, other) => other - one); // the older one first
  if (RUNS[a].href || RUNS[b].href) {
    location.assign("?" + [a, b].map(place => "run=" + encodeURIComponent(RUNS[place].id)).join("&"));
    return;
  }
  go({ c: `${RUNS[a].id}~${RUNS[b].id}` });
  showRuns();
  $("diff").scrollIntoView({ block: "nearest" });
}
function pickRun(place, e = "") {
  if (RUNS[place].href) { location.assign(RUNS[place].href); return; }
  go({ run: place, e, v: e && STATE.v === 4 ? 1 : STATE.v === 4 ? firstView() : STATE.v, q: "", s: "",
    ...Object.fromEntries(FILTERS.map(key => [key, ""])) });
  showRun(place);
}
