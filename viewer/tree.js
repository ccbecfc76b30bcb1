// --- the tree
let rowHeight = 32, filling = 0;
const virtual = () => run.visible.length > PLAIN_ROWS;
function showRows() {
  findVisible();
  const box = $("rows"), kept = document.activeElement?.closest("#rows") ? STATE.e : "";
  cancelIdle(filling);
  box.replaceChildren();
  box.classList.toggle("virtual", virtual());
  $("grid").setAttribute("aria-rowcount", run.visible.length + 1);
  box.style.height = "";
  if (!run.visible.length) box.append(noRow());
  else if (virtual()) {
    rowHeight = matchMedia("(max-width:480px)").matches ? 58 : 32;
    box.style.height = run.visible.length * rowHeight + "px";
    fillWindow();
  } else fillSome(0, FIRST_ROWS);
  if (kept) focusRow(rowOf(kept));
}
function noRow() {
  const why = run.count ? "No row passes these filters." : "This log has no event yet.";
  return h("div", { role: "row", class: "empty" }, h("div", { role: "gridcell" }, why));
}
const idle = window.requestIdleCallback || (act => setTimeout(act, 1));
const cancelIdle = window.cancelIdleCallback || clearTimeout;
function fillSome(from, to) {
  $("rows").append(...run.visible.slice(from, to).map((row, i) => rowElement(row, from + i)));
  if (to < run.visible.length) filling = idle(() => fillSome(to, to + 400));
}
function fillWindow() {
  if (!virtual() || $("v1").hidden) return;
  const box = $("rows"), top = Math.max(0, -box.getBoundingClientRect().top), shown = new Set();
  const from = Math.max(0, Math.floor(top / rowHeight) - 15);
  const to = Math.min(run.visible.length, from + Math.ceil(innerHeight / rowHeight) + 30);
  for (const old of [...box.children]) {
    const outside = old.place < from || old.place >= to;
    if (outside && !old.contains(document.activeElement)) old.remove();
    else shown.add(old.place);
  }
  for (let place = from; place < to; place++) {
    if (!shown.has(place)) box.append(placed(rowElement(run.visible[place], place)));
  }
}
function placed(element) {
  element.style.top = element.place * rowHeight + "px";
  return element;
}
function rowElement(i, place) {
  const parent = run.parent[i], chosen = rowId(i) === STATE.e, flat = order() !== "", many = run.size[i] > 1 && !flat;
  const element = h("div", {
    role: "row", id: "row" + rowId(i), tabindex: chosen || (place === 0 && !STATE.e) ? 0 : -1,
      "aria-level": flat ? 1 : run.level[i] + 1, "aria-rowindex": place + 2,
    "aria-selected": chosen, "aria-expanded": many ? !!run.open[i] : null,
      class: (run.match && !run.match[i] ? "dim " : "") + (SEARCH.hits.has(i) ? "hit" : ""),
  }, nameCell(i), barCell(i), ...figureCells(i));
  element.row = i;
  element.place = place;
  if (parent >= 0 && run.level[i] > 40) element.title = `level ${run.level[i]}`;
  return element;
}
function nameCell(i) {
  const indent = h("span", { class: "in" }), flat = order() !== "";
  indent.style.setProperty("--l", flat ? 0 : Math.min(run.level[i], 24));
  const where = flat ? h("span", { class: "where" }, pathOf(i).slice(-3).map(above => name(above) + " › ")) : null;
  return h("div", { role: "gridcell", class: "name" }, indent,
    h("span", { class: "twist" + (run.size[i] > 1 && !flat ? " has" : "") }), icon(markOf(i)), where,
    h("b", {}, name(i)), tags(i), told(i));
}
// What a row is → what came of it.
function told(i) {
  const k = kind(i), code = k === "cell" || k === "tool" ? " code" : "", outcome = run.outcomes[i];
  const result = outcome && h("span", { class: `out${isError(i) ? " failed" : ""}${code}`, dir: "auto" }, outcome);
  return [h("span", { class: "said" + code, dir: "auto" }, run.texts[i]),
    result ? [h("span", { class: "arrow" }, "→"), result] : null];
}
function tags(i) {
  const found = [], add = (text, look) => found.push(h("span", { class: "tag " + look }, text)),
    flags = run.flags[i], k = kind(i);
  if (run.level[i] > 24) add("level " + run.level[i], "");
  if (flags & ERROR) k === "end" || add("error", "error");
  else if (run.errors[i] && !run.open[i]) add(run.errors[i] + (run.errors[i] > 1 ? " errors" : " error"), "error");
  if (flags & FINAL) add("answer", "final");
  if (flags & WARNING) add(k === "end" ? "stopped" : "cut short", "warn");
  if (flags & RESTORED) add("variables restored", "warn");
  if (flags & RETRIED) add("retried", "warn");
  if (flags & ESTIMATED) add("estimate", "");
  if (run.width[i] > 1 && (k === "batch" || k === "cell")) add(run.width[i] + " at once", "");
  else if (k === "batch") add("sequential", "");
  return found;
}
function barCell(i) {
  const bar = h("span", {}), left = run.time.share(run.start[i]);
  bar.style.left = left * 100 + "%";
  bar.style.width = (run.time.share(run.end[i]) - left) * 100 + "%";
  return h("div", { role: "gridcell", class: `bar k-${isError(i) ? "error" : kind(i)}` }, bar);
}
function figureCells(i) {
  const paid = isPaid(i), own = run.input[i] + run.output[i], cost = run.cost[i], flat = order() !== "";
  const timed = !UNTIMED.includes(kind(i));
  const cell = (total, self, look) => h("div", { role: "gridcell", class: "figure" + (look || "") },
    h("span", {}, flat ? self : total), h("i", {}, self && self !== total && !flat ? ` (${self})` : ""));
  const nonzero = (value, words) => value ? words : "";
  return [
    paid ? cell(number(run.allTokens[i]), nonzero(own, number(own)), " first") : cell("", "", " first"),
    paid ? cell(money(run.allCost[i], run.unpriced[i]), cost < 0 ? "?" : nonzero(flat || cost < run.allCost[i],
      nonzero(cost, money(cost, 0)))) : cell("", ""),
    timed ? cell(duration(run.all[i]), nonzero(run.own[i] >= 1, duration(run.own[i]))) : cell("", ""),
  ];
}
const element = row => row < 0 ? null : $("row" + rowId(row));
function ensured(row) {
  const place = run.visible.indexOf(row);
  if (place >= 0 && !element(row)) {
    if (virtual()) $("rows").append(placed(rowElement(row, place)));
    else { cancelIdle(filling); fillSome($("rows").childElementCount, run.visible.length); }
  }
  return element(row);
}
function focusRow(row, cell = -1) {
  const found = ensured(row);
  if (!found) return;
  const target = found.children[cell] || found;
  if (target !== found) target.tabIndex = -1;
  target.focus({ preventScroll: true });
  intoView(found);
}
function intoView(target) {
  const box = target.getBoundingClientRect(), top = 140;
  if (box.top < top) scrollBy(0, box.top - top);
  else if (box.bottom > innerHeight - 8) scrollBy(0, box.bottom - innerHeight + 40);
}
function select(row, options = {}) {
  if (row === undefined || row < 0) return;
  const { push, focus, reveal: open, inspect } = options, reading = STATE.v === 5;
  if (open && reading && !inspect) { readAt(row, push); return; }
  if (open && !focus && !reading && STATE.v !== 1) setView(1);
  if (open) reveal(row);
  markRow(row, Boolean(push), (open || focus) && !reading);
  showEvent(row);
  if (inspect && reading && push) document.body.classList.add("open");
}
function markRow(row, push, focus) {
  const before = element(rowOf(STATE.e)) || $("rows").querySelector("[tabindex='0']");
  go({ e: rowId(row) }, push);
  if (before) mark(before, false);
  if (focus) focusRow(row);
  if (element(row)) mark(element(row), true);
}
// In the transcript a row is gone to where it stands, and opened there.
function readAt(row, push) {
  go({ e: rowId(row) }, push);
  showTranscript();
  showEvent(row);
}
function mark(target, chosen) {
  target.setAttribute("aria-selected", chosen);
  target.tabIndex = chosen ? 0 : -1;
}
function toggle(row, open = !run.open[row]) {
  if (run.size[row] < 2 || !!run.open[row] === open) return;
  run.open[row] = open ? 1 : 0;
  showRows();
  focusRow(row);
}
const GRID_KEYS = {
  ArrowDown: (row, cell) => step(row, 1, cell), ArrowUp: (row, cell) => step(row, -1, cell),
  j: row => step(row, 1, -1), k: row => step(row, -1, -1),
  PageDown: (row, cell) => step(row, 15, cell), PageUp: (row, cell) => step(row, -15, cell),
  Home: (row, cell, event) => cell < 0 || event.ctrlKey ? step(row, -1e9, cell) : focusRow(row, 0),
  End: (row, cell, event) => cell < 0 || event.ctrlKey ? step(row, 1e9, cell) : focusRow(row, 4),
  ArrowRight: (row, cell) => cell < 0 && run.size[row] > 1 && !run.open[row] ? toggle(row, true)
    : focusRow(row, Math.min(4, nextCell(row, cell, 1))),
  ArrowLeft: (row, cell) => cell >= 0 ? focusRow(row, nextCell(row, cell, -1)) : run.size[row] > 1 && run.open[row]
    ? toggle(row, false) : run.parent[row] >= 0 && select(run.parent[row], { focus: true }),
  Enter: row => { select(row, { push: true }); document.body.classList.add("open");
    if (matchMedia("(max-width:900px)").matches) $("inspector").focus(); },
  " ": row => toggle(row),
};
function nextCell(row, cell, by) {
  const cells = element(row).children;
  do cell += by; while (cells[cell] && !cells[cell].offsetWidth);
  return cell;
}
function step(row, by, cell) {
  const place = Math.max(0, Math.min(run.visible.length - 1, run.visible.indexOf(row) + by)),
    next = run.visible[place];
  if (next === undefined) return;
  select(next, { focus: true });
  focusRow(next, cell);
}
function gridKey(event) {
  const target = event.target.closest("[role=row]"), act = GRID_KEYS[event.key];
  if (!target || target.row === undefined || !act || event.altKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  act(target.row, [...target.children].indexOf(event.target.closest("[role=gridcell]")), event);
}
function gridClick(event) {
  const target = event.target.closest("[role=row]");
  if (!target || target.row === undefined) return;
  const twice = event.detail === 2 && run.size[target.row] > 1;
  if (twice || event.target.closest(".twist.has")) { toggle(target.row); return; }
  select(target.row, { push: true, focus: true });
  document.body.classList.add("open");
}
function nextError() {
  const from = rowOf(STATE.e);
  for (let by = 1; by <= run.count; by++) {
    const i = (from + by) % run.count;
    if (isError(i)) { select(i, { push: true, reveal: true }); return; }
  }
  say("This run has no error.");
}

