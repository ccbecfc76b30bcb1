// --- which rows are to be seen
const FILTER_TESTS = {
  k: (i, want) => want.split(",").includes(kind(i)),
  d: (i, want) => run.depth[i] === +want,
  m: (i, want) => run.models[run.model[i]] === want && run.input[i] + run.output[i] > 0,
  t: (i, want) => want === "execute_code" ? kind(i) === "cell" : kind(i) === "tool" && name(i) === want,
  err: i => isError(i),
  cost: (i, want) => run.cost[i] >= +want && run.input[i] + run.output[i] > 0,
  ms: (i, want) => run.own[i] >= +want,
};
function applyFilters() {
  const active = FILTERS.filter(key => STATE[key]);
  run.match = run.keep = null;
  if (active.length) {
    run.match = new Uint8Array(run.count);
    run.keep = new Uint8Array(run.count);
    for (let i = run.count - 1; i >= 0; i--) {
      run.match[i] = active.every(key => FILTER_TESTS[key](i, STATE[key])) ? 1 : 0;
      run.keep[i] |= run.match[i];
      if (run.keep[i] && run.parent[i] >= 0) run.keep[run.parent[i]] = run.open[run.parent[i]] = 1;
    }
  }
  $("active").textContent = active.length || "";
}
// With an order in the address the tree is a flat list, by the rows' own values.
const ORDERS = {
  tokens: i => run.input[i] + run.output[i],
  cost: i => run.cost[i],
  time: i => UNTIMED.includes(kind(i)) ? 0 : run.own[i],
};
const order = () => STATE.s.replace("-", "") in ORDERS ? STATE.s.replace("-", "") : "";
function inOrder() {
  const value = ORDERS[order()], up = STATE.s.startsWith("-") ? -1 : 1, found = [];
  for (let i = 0; i < run.count; i++) if (value(i) && (!run.match || run.match[i])) found.push(i);
  return found.sort((a, b) => up * (value(b) - value(a)) || a - b);
}
function sortBy(column) {
  const next = { "": column, [column]: "-" + column, ["-" + column]: "" }[STATE.s] ?? column;
  go({ s: next }, false);
  showRows();
  showOrder();
}
function showOrder() {
  for (const head of document.querySelectorAll("#grid [data-sort]")) {
    const mine = order() === head.dataset.sort, up = STATE.s.startsWith("-");
    head.setAttribute("aria-sort", mine ? up ? "ascending" : "descending" : "none");
  }
}
function findVisible() {
  if (order()) { run.visible = inOrder(); return; }
  const found = [];
  for (let i = 0; i < run.count; i += run.open[i] ? 1 : run.size[i]) {
    if (run.keep && !run.keep[i]) { i += run.size[i] - (run.open[i] ? 1 : run.size[i]); continue; }
    found.push(i);
  }
  run.visible = found;
}
function openAtFirst() {
  const atLevel = [];
  for (let i = 0; i < run.count; i++) atLevel[run.level[i]] = (atLevel[run.level[i]] || 0) + 1;
  let sum = 0, deepest = 0;
  while (deepest < atLevel.length && (sum += atLevel[deepest]) <= 3000) deepest++;
  for (let i = 0; i < run.count; i++) run.open[i] = run.size[i] > 1 && kind(i) !== "batch" &&
    run.level[i] < Math.max(3, deepest) ? 1 : 0;
}
function reveal(row) {
  let changed = Boolean(order() && !run.visible.includes(row));
  if (changed) go({ s: "" }, false);
  for (let i = run.parent[row]; i >= 0; i = run.parent[i]) if (!run.open[i]) changed = run.open[i] = true;
  if (changed) showRows();
}
function setAll(open) {
  for (let i = 0; i < run.count; i++) run.open[i] = open && run.size[i] > 1 ? 1 : 0;
  if (!open) for (let i = 0; i < run.count; i += run.size[i]) run.open[i] = 1;
  showRows();
}

