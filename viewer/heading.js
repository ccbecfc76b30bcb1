// --- the heading
function showSummary() {
  const meta = run.meta, [asked, ended, source] = meta.at;
  const [answer, raw] = readable(meta.answer || "none", wrapValues);
  answer.id = "answer";
  answer.classList.add("clamp");
  $("summary").replaceChildren(...[
    h("div", { class: "qa" },
      h("div", {}, h("h2", {}, "Question", meta.cut[0] ? eventLink("whole text", asked) : null),
        h("div", { id: "question", class: "prose clamp", dir: "auto" }, meta.question)),
      h("div", {}, h("h2", {}, "Answer ", h("span", { id: "status", class: "badge " + meta.status }, meta.status),
        h("span", { class: "grow" }), answerLink(meta, ended, source), raw, copyButton("Copy", () => meta.answer)),
      failure(meta), answer, h("div", { id: "origin" }))),
    findings(meta),
    h("dl", { class: "cards" }, meta.cards.map(card => cardOf(card, meta))),
    h("ul", { class: "problems" }, meta.problems.map(text => h("li", {}, text)))].filter(Boolean));
  for (const box of document.querySelectorAll(".clamp")) clamp(box);
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
function findings(meta) {
  const list = (meta.findings || []).map(([words, at]) => h("li", {}, eventLink(words, at)));
  return list.length ? h("ul", { class: "findings", "aria-label": "Findings" }, list) : null;
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
