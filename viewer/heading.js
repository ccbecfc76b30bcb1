// --- the heading
function showSummary() {
  const meta = run.meta, [asked, ended, source] = meta.at;
  const [answer, raw] = readable(meta.answer || (meta.status === "unfinished" ? "none yet" : "none"), wrapValues);
  answer.id = "answer";
  answer.classList.add("clamp");
  $("summary").replaceChildren(
    h("div", { class: "qa" },
      h("div", {}, h("h2", {}, "Question", meta.cut[0] ? eventLink("whole text", asked) : null),
        h("div", { id: "question", class: "prose clamp", dir: "auto" }, meta.question)),
      h("div", {}, h("h2", {}, "Answer ", h("span", { id: "status", class: "badge " + meta.status }, meta.status),
        h("span", { class: "grow" }), answerLink(meta, ended, source), raw, copyButton("Copy", () => meta.answer)),
      failure(meta), answer, h("div", { id: "origin" }))),
    h("ul", { id: "findings", class: "findings", "aria-label": "Findings" }),
    h("dl", { class: "cards" }, meta.cards.map(card => cardOf(card, meta))),
    h("ul", { class: "problems" }, meta.problems.map(text => h("li", {}, text))));
  for (const box of document.querySelectorAll(".clamp")) clamp(box);
  showFindings();
  document.title = (firstLine(meta.question).slice(0, 60) || meta.id) + " · rlm trajectory";
}
function answerLink(meta, ended, source) {
  if (meta.cut[1]) return eventLink("whole text", ended);
  if (source < 0 || run.rowAt[source] < 0) return null;
  const row = run.rowAt[source];
  return eventLink("from " + (kind(row) === "cell" ? `${name(run.parent[row])}, ${name(row)}` : name(row)), source);
}
const eventLink = (label, at) => button(label, () => select(run.rowAt[at], { push: true, reveal: true }),
  { class: "link" });
function failure(meta) {
  const open = meta.status === "unfinished" && !DATA.live;
  const why = meta.failure || (open && { message: "The run has no end: it goes on, or it was killed.",
    command: "rlm resume " + meta.id, first: -1 });
  if (!why) return null;
  const first = run.rowAt[why.first] >= 0 ? run.rowAt[why.first] : -1;
  return h("div", { class: "failure", id: "failure" },
    h("p", {}, why.type ? [h("b", {}, why.type), ": "] : "", why.message),
    why.hint ? h("p", {}, "Next: " + why.hint) : null,
    why.command ? h("p", { class: "command" }, h("code", {}, why.command), copyButton("Copy", () => why.command))
      : null,
    first < 0 ? null : h("p", {}, "First failure: ", eventLink(`${name(first)}: ${run.outcomes[first]}`, why.first)));
}
// What a reader should know of the run, in words, each with the row to look at.
async function showFindings() {
  const r = run;
  await new Promise(done => idle(done));
  if (r !== run) return;
  const found = [...notes(), ...await repeated(r)].filter(([, rows]) => rows.length);
  if (r !== run) return;
  $("findings").replaceChildren(...found.map(([words, [row]]) =>
    h("li", {}, button(words, () => select(row, { push: true, reveal: true }), { class: "link" }))));
}
function notes() {
  const rows = [...run.level.keys()], flagged = flag => rows.filter(i => run.flags[i] & flag);
  const cut = flagged(WARNING).filter(i => kind(i) === "turn" || kind(i) === "sub"), retried = flagged(RETRIED);
  const now = rows.filter(i => run.at[i] >= run.meta.at[0]), ran = now.some(i => ["cell", "tool"].includes(kind(i)));
  const took = retried.reduce((sum, i) => sum + run.own[i], 0);
  return [
    ["answered without running code", ran || run.meta.status !== "answered" ? [] : now.filter(isTurn).slice(-1)],
    dearest(rows),
    [counted(cut.length, "reply").replace("replys", "replies") + " cut off", cut],
    [`${counted(retried.length, "call")} retried: ${duration(took)}`, retried],
    ["variables lost with a cell that was stopped", flagged(RESTORED)],
  ];
}
const isTurn = i => kind(i) === "turn";
// The innermost batch or child that took most of the cost.
function dearest(rows) {
  const whole = rows.reduce((sum, i) => sum + Math.max(0, run.cost[i]), 0);
  const row = rows.findLast(i => (kind(i) === "batch" || name(i) === "rlm_query") && run.allCost[i] > whole / 2);
  if (!whole || row === undefined) return ["", []];
  const what = kind(row) === "batch" ? "batch" : "child";
  return [`${Math.round(100 * run.allCost[row] / whole)} % of the cost in one ${what}`, [row]];
}
const COMPARED_CELLS = 400;
async function repeated(r) {
  const cells = rowsOf("cell"), groups = new Map();
  if (cells.length > COMPARED_CELLS) return [];
  for (const i of cells) {
    const { code } = await body(r, r.at[i]), key = r.node[i] + show(code).trim();
    groups.set(key, [...(groups.get(key) || []), i]);
  }
  const same = [...groups.values()].filter(rows => rows.length > 1).sort((a, b) => b.length - a.length);
  return same.slice(0, 2).map(rows => [`the same cell ${counted(rows.length, "time")}`, rows]);
}
function clamp(box) {
  if (box.scrollHeight <= box.clientHeight + 4) { box.classList.remove("clamp"); return; }
  const more = button("Show all", () => {
    more.textContent = box.classList.toggle("clamp") ? "Show all" : "Show less";
  }, { class: "link" });
  box.after(more);
}
function cardOf([title, value, note, limits], meta) {
  const bad = title === "Errors" && meta.errors;
  const meters = limits.map(([words, share]) => [h("span", {}, words), meter(words, share)]);
  return h("div", { class: bad ? "bad" : "" }, h("dt", {}, title), h("dd", {}, value),
    h("dd", { class: "note" }, note, meters));
}
function meter(label, share) {
  const full = Math.min(100, Math.round(share * 100));
  const fill = h("span", { class: `fill k-${share < 0.9 ? "end" : "tool"}` });
  fill.style.width = full + "%";
  const range = { role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": full };
  return h("span", { class: "track", "aria-label": label, ...range }, fill);
}
function showPicker() {
  $("pick").replaceChildren(...RUNS.map((meta, i) =>
    h("option", { value: i }, `${meta.id} · ${meta.status} · ${firstLine(meta.question).slice(0, 60)}`)));
  $("pick").value = STATE.run;
  $("pick").hidden = !RUNS.length;
}
