// --- runs, and two of them compared
function showRuns() {
  const head = ["Run", "Question", "Status", "Started", "Duration", "Calls", "Tokens", "Cost"];
  const title = `${number(RUNS.length)} ${RUNS.length === 1 ? "run" : "runs"}, newest first`;
  const list = tableOf(head, RUNS.map(runLine), title);
  $("v4").replaceChildren(...(DATA.diff ? [comparison(DATA.diff)] : []), list);
}
function tableOf(head, rows, title) {
  const wordy = new Set(["Question", "A", "B"]);
  const heads = head.map(word => h("th", { scope: "col", class: wordy.has(word) ? "l" : "" }, word));
  const table = h("table", {}, h("caption", {}, title), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table);
}
function runLine(meta, i) {
  const told = (value, format) => h("td", {}, value === null ? "?" : format(value));
  return h("tr", { class: i === STATE.run ? "on" : "" },
    h("td", {}, button(meta.id, () => pickRun(i), { class: "link mono" })),
    h("td", { class: "l" }, meta.question.split("\n")[0].slice(0, 120)),
    h("td", {}, h("span", { class: "badge " + meta.status }, meta.status)),
    h("td", {}, (meta.started || "").slice(0, 16).replace("T", " ")),
    told(meta.duration_ms, duration), told(meta.calls, number), told(meta.tokens, number),
    h("td", {}, meta.cost_usd === null ? money(meta.cost_known || 0, 1) : money(meta.cost_usd)));
}
const DELTAS = [["Calls", "calls", number], ["Tokens", "tokens", number],
  ["Cost", "cost_usd", value => money(value || 0, value === null)], ["Duration", "duration_ms", duration],
  ["Errors", "errors", number], ["Depth", "depth_reached", number]];
const STEP_WORDS = { same: "same", changed: "differs", left: "only A", right: "only B" };
function comparison(diff) {
  const [a, b] = RUNS, first = diff.steps[diff.first];
  const jump = first
    ? button("First divergence: " + (first[4] || first[5]), () => $("divergence").scrollIntoView({ block: "center" }),
      { class: "link" })
    : h("p", {}, "Both runs took the same steps to the same results.");
  const more = diff.more ? h("p", { class: "empty" }, `… and ${number(diff.more)} more steps`) : null;
  return h("div", {}, h("div", { class: "v4row" }, h("h2", {}, `A ${a.id} → B ${b.id}`), jump),
    h("dl", { class: "deltas" }, DELTAS.map(part => delta(part, a, b))),
    tableOf(["Step", "A", "B"], diff.steps.map((step, i) => stepLine(step, i === diff.first)), "Steps"), more);
}
function delta([title, key, format], a, b) {
  const by = b[key] - a[key], sign = by > 0 ? "+" : by < 0 ? "−" : "±";
  const change = a[key] === null || b[key] === null ? "?" : sign + format(Math.abs(by));
  return h("div", {}, h("dt", {}, title), h("dd", { class: "d" }, change),
    h("dd", {}, `${format(a[key])} → ${format(b[key])}`));
}
function stepLine([state, left, right, , one, other], first) {
  const side = (at, place, words) =>
    h("td", {}, at < 0 ? words : button(words, () => pickRun(place, String(at)), { class: "link" }));
  return h("tr", { class: "step" + (first ? " first" : ""), id: first ? "divergence" : null },
    h("td", {}, h("span", { class: "tag " + state }, STEP_WORDS[state])), side(left, 0, one), side(right, 1, other));
}
function pickRun(place, e = "") {
  if (RUNS[place].href) { location.assign(RUNS[place].href); return; }
  go({ run: place, e, v: 1, q: "", ...Object.fromEntries(FILTERS.map(key => [key, ""])) });
  showRun(place);
}

