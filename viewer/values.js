// --- where a value of the answer comes from: every place with it, in order, whatever its rounding and separators
const DIGITS = `\\d+(?:[${BETWEEN}]\\d+)*`, NUMBER = new RegExp(DIGITS, "g");
const UNITS = "%|(?:thousand|million|billion|[kMB])\\b", FIGURE = new RegExp(`^(${DIGITS})\\s?(${UNITS})?$`);
const VALUE = new RegExp([
  "\\d{4}-\\d\\d-\\d\\d(?:[T ]\\d\\d:\\d\\d(?::\\d\\d)?)?|\\d{1,2}:\\d\\d(?::\\d\\d)?", // a date or a time, as written
  '“[^”\\n]{2,200}”|"[^"\\n]{2,200}"|`[^`\\n]{2,200}`|‘[^’\\n]{3,200}’',
  `${DIGITS}(?:\\s?(?:${UNITS}))?`,
].join("|"), "g");
const SCALES = { k: 1e3, thousand: 1e3, M: 1e6, million: 1e6, B: 1e9, billion: 1e9 };
const TRACED_ANSWERS = 60, TRACED_EVENTS = 3000;
function numberOf(words) {
  const marks = words.replace(/\d/g, "");
  const last = words.length - 1 - Math.max(words.lastIndexOf("."), words.lastIndexOf(","));
  const alone = marks.length === 1 && (marks === "." || last !== 3);
  const decimal = /[.,]/.test(marks) && (new Set(marks).size > 1 || alone);
  const decimals = decimal ? last : 0, digits = words.replace(/\D/g, "");
  return { value: +digits / 10 ** decimals, decimals };
}
// What recognises a value in a text: [[from, to], …] of its places.
function recogniser(words) {
  const [, figure, unit] = FIGURE.exec(words) || [];
  if (figure === undefined) {
    const each = new RegExp(escaped(bare(words)).replace(/\s+/g, "\\s+"), "gi");
    return content => [...content.matchAll(each)].map(hit => [hit.index, hit.index + hit[0].length]);
  }
  const { value, decimals } = numberOf(figure), scale = SCALES[unit] || 1, close = 0.5000001 * 10 ** -decimals;
  const rounds = figure.replace(/\D/g, "").length > 1;
  const same = other => Math.abs(other / scale - value) <= (rounds ? close : 0) ||
    (unit === "%" && Math.abs(other * 100 - value) <= close);
  return (content, numbers = numbersIn(content)) => numbers.filter(hit => same(hit[2])).map(([from, to]) => [from, to]);
}
// [from, to, value] of each number.
const numbersIn = content => [...content.matchAll(NUMBER)].map(hit =>
  [hit.index, hit.index + hit[0].length, numberOf(hit[0]).value]);
const isTelling = words => !/^\d$/.test(words);
const bare = words => words.replace(/^[“"`‘]|[”"`’]$/g, "");
function valuesOf(content) {
  return [...new Set([...content.matchAll(VALUE)].map(hit => bare(hit[0])).filter(isTelling))].slice(0, TRACED_ANSWERS);
}
// Each value of the answer as a button.
function wrapValues(box) {
  const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes) {
    const code = node.parentElement.tagName === "CODE" && node.data.length > 2 && node.data.length < 200;
    if (code) { node.replaceWith(valueButton(node.data)); continue; }
    for (const hit of [...node.data.matchAll(VALUE)].reverse()) {
      if (!isTelling(hit[0])) continue;
      const rest = node.splitText(hit.index);
      rest.splitText(hit[0].length);
      rest.replaceWith(valueButton(hit[0]));
    }
  }
  markLost(box);
}
const valueButton = words =>
  button(words, () => trace(bare(words)), { class: "link value", title: "Where it comes from" });

// - the places
// [label, text] of what an event says, apart from what only repeats another event.
const SAID = {
  node: (event, i) => {
    const [asked, given] = run.depth[i] ? [`${name(i)}'s prompt`, `${name(i)}'s context`]
      : ["the question", "the context's beginning"];
    return [[asked, event.prompt], [given, event.announcement || event.context?.preview]];
  },
  turn: (event, i) => [[`${name(i)}'s reply`, event.response]],
  sub: (event, i) => [[subName(i) + "'s prompt", contentOf(event.prompt)], [subName(i), event.response]],
  cell: (event, i) => [[`${name(i)}'s code`, event.code], [`${name(i)}'s output`,
    [event.stdout, event.value].filter(Boolean).map(show).join("\n")], [`${name(i)}'s error`, tracebackOf(event)]],
  tool: (event, i) => [[`${name(i)}'s result`, contentOf(event.tool_results)]],
  compact: event => [["a summary", event.summary]],
  end: (event, i) => run.depth[i] ? [[`${name(nodeOf(i))}'s answer`, event.response]] : [],
};
const subName = i => name(i) === "llm_query" ? "sub-call " + run.texts[i].slice(1) : name(i);
const contentOf = list => Array.isArray(list) ? list.map(item => contentText(item?.content ?? "")).join("\n")
  : show(list);
// Where the answer itself stands: its last turn, or its last cell, whose code may hold it as the model typed it.
function answerRows() {
  const source = run.rowAt[run.meta.at[2]] ?? -1;
  return new Set(source < 0 ? [] : [source, kind(source) === "cell" ? run.parent[source] : source]);
}
// For each recogniser its places; with `enough` no more of a value that has one before the answer.
async function placesOf(recognisers, enough = false) {
  const answer = answerRows(), found = recognisers.map(() => []), open = new Set(recognisers.keys()), r = run;
  for await (const [lines, first] of allChunks(r)) {
    if (r !== run || !open.size) break;
    lines.split("\n").forEach((line, n) => {
      const i = r.rowAt[first + n], said = i >= 0 && first + n < endOfRun() && open.size ? SAID[kind(i)] : null;
      for (const [label, value] of said ? said(JSON.parse(line), i) : []) {
        const content = contentText(value ?? ""), numbers = numbersIn(content), own = answer.has(i);
        for (const at of open) {
          const [hit] = recognisers[at](content, numbers);
          if (hit) found[at].push({ i, label, content, hit, own });
          if (hit && enough && !own) open.delete(at);
        }
      }
    });
  }
  return found;
}
const endOfRun = () => run.meta.at[1] < 0 ? run.meta.events : run.meta.at[1];
async function trace(words) {
  const [places] = await placesOf([recogniser(words)]), before = places.filter(place => !place.own);
  const typed = places.some(place => place.own && (kind(place.i) === "turn" || place.label.endsWith("code")));
  const source = run.rowAt[run.meta.at[2]] ?? -1;
  const made = !before.length && !typed && source >= 0 && kind(source) === "cell";
  const chain = [...before.slice(0, 12).map(place => placeLink(place, words)),
    before.length > 12 ? `… ${number(before.length - 12)} more` : null,
    made ? [eventLink(`computed in ${name(source)}`, run.at[source])] : null, h("b", {}, "answer")].filter(Boolean);
  const heading = before.length || made ? chain.flatMap((step, n) => n ? [" → ", step] : [step])
    : [h("b", { class: "lost" }, "not found in the run"), " before the answer"];
  $("origin").replaceChildren(h("div", { class: "tracing", role: "status" },
    h("p", {}, h("b", {}, words), ": ", heading, " ", button("×", () => $("origin").replaceChildren(), { class: "icon",
      "aria-label": "Close the trace" })),
    h("ul", {}, before.slice(0, 100).map(place => placeLine(place, words)))));
}
function placeLink(place, words) {
  const act = () => { go({ q: place.content.slice(...place.hit) }, false); $("q").value = STATE.q; search();
    select(place.i, { push: true, reveal: true }); };
  return button(place.label, act, { class: "link", "aria-label": `${words} in ${place.label}` });
}
function placeLine(place, words) {
  const [from, to] = place.hit, { content } = place;
  return h("li", {}, placeLink(place, words), " ", h("span", { class: "around", dir: "auto" },
    (from > AROUND ? "…" : "") + content.slice(Math.max(0, from - AROUND), from),
    h("mark", {}, content.slice(from, to)),
    content.slice(to, to + AROUND) + (content.length > to + AROUND ? "…" : "")));
}
// Say which of the answer's values are nowhere before it; a very long run is searched on demand only.
async function markLost(box) {
  const values = valuesOf(run.meta.answer || ""), r = run;
  if (!values.length || r.meta.events > TRACED_EVENTS || r.meta.at[2] < 0) return;
  await new Promise(done => idle(done));
  if (r !== run) return;
  r.lost ??= placesOf(values.map(recogniser), true).then(found => {
    const source = r.rowAt[r.meta.at[2]], computed = KINDS[r.kind[source]] === "cell";
    return values.filter((_, at) => !found[at].some(place => !place.own) && !(computed &&
      !found[at].some(place => place.own && place.label.endsWith("code"))));
  });
  const lost = new Set(await r.lost);
  if (r !== run) return;
  for (const made of box.querySelectorAll(".value")) made.classList.toggle("lost", lost.has(bare(made.textContent)));
  $("lost")?.remove();
  const words = "Not found in the run: " + [...lost].join(", ");
  if (lost.size) $("origin").before(h("p", { id: "lost", class: "note" }, words));
}

// - any text that is selected
function offerTrace() {
  const chosen = getSelection(), offer = $("offer");
  const words = chosen.isCollapsed ? "" : String(chosen).trim();
  const inside = chosen.rangeCount && chosen.anchorNode?.parentElement?.closest("#summary, #inspector, #v5");
  offer.hidden = !inside || words.length < 2 || words.length > 200;
  if (offer.hidden) return;
  const box = chosen.getRangeAt(0).getBoundingClientRect();
  offer.style.left = Math.max(4, Math.min(innerWidth - 130, box.left)) + "px";
  offer.style.top = Math.max(4, box.top - 40) + "px";
}
function traceSelected() {
  const words = String(getSelection()).trim();
  $("offer").hidden = true;
  if (words.length < 2) return;
  trace(words);
  $("origin").scrollIntoView({ block: "nearest" });
}
