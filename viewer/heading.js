// --- the heading
function showSummary() {
  const meta = run.meta, [asked, ended, source] = meta.at;
  $("summary").replaceChildren(
    h("div", { class: "qa" },
      h("div", {}, h("h2", {}, "Question", meta.cut[0] ? eventLink("whole text", asked) : null),
        prose("question", meta.question)),
      h("div", {}, h("h2", {}, "Answer ", h("span", { id: "status", class: "badge " + meta.status }, meta.status),
        answerLink(meta, ended, source)), prose("answer", meta.answer || "none yet"))),
    h("dl", { class: "cards" }, meta.cards.map(card => cardOf(card, meta))),
    h("ul", { class: "problems" }, meta.problems.map(text => h("li", {}, text))));
  for (const box of document.querySelectorAll(".prose")) clamp(box);
  document.title = (meta.question.split("\n")[0].slice(0, 60) || meta.id) + " · rlm trajectory";
}
const prose = (id, text) => h("div", { id, class: "prose clamp" }, text);
function answerLink(meta, ended, source) {
  if (meta.cut[1]) return eventLink("whole text", ended);
  if (source < 0 || run.rowAt[source] < 0) return null;
  const row = run.rowAt[source];
  return eventLink("from " + (kind(row) === "cell" ? `${name(run.parent[row])}, ${name(row)}` : name(row)), source);
}
const eventLink = (label, at) => button(label, () => select(run.rowAt[at], { push: true, reveal: true }),
  { class: "link" });
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
    h("option", { value: i }, `${meta.id} · ${meta.status} · ${meta.question.split("\n")[0].slice(0, 60)}`)));
  $("pick").value = STATE.run;
  $("pick").hidden = !RUNS.length;
}

