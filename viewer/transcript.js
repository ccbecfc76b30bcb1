// --- the transcript: one node as a notebook; its children are folded in their places
const SCRIPT = { node: -1, watcher: null };
function nodeOf(row) {
  let i = row;
  while (i >= 0 && kind(i) !== "node") i = run.parent[i];
  return i;
}
function showTranscript() {
  const nodes = rowsOf("node"), chosen = rowOf(STATE.e), node = chosen >= 0 ? nodeOf(chosen) : nodes[0] ?? -1;
  if (SCRIPT.node !== node || !$("script") || SCRIPT.run !== run) {
    Object.assign(SCRIPT, { node, run });
    SCRIPT.watcher?.disconnect();
    SCRIPT.watcher = new IntersectionObserver(entries => entries.forEach(fillSeen), { rootMargin: "700px 0px" });
    const body = h("div", { class: "notebook", id: "script" }, sections(node, SCRIPT.watcher));
    $("v5").replaceChildren(outlineOf(node), h("div", { class: "page" }, scriptBar(nodes, node), body));
  }
  if (chosen >= 0 && chosen !== node) requestAnimationFrame(() => toSection(chosen));
}
function fillSeen(entry) {
  if (!entry.isIntersecting) return;
  SCRIPT.watcher.unobserve(entry.target);
  fillSection(entry.target);
}
// The rows that are sections of a node's notebook; without a node (a damaged log) those at the top.
function sectionRows(node) {
  if (node >= 0) return childrenOf(node);
  const found = [];
  for (let i = 0; i < run.count; i += run.size[i]) found.push(i);
  return found;
}
function sections(node, watcher) {
  return sectionRows(node).map(i => {
    const section = h("section", { class: "act", tabindex: -1, "aria-label": name(i) }, sectionHead(i),
      h("div", { class: "acts" }));
    Object.assign(section, { row: i, size: run.size[i] });
    watcher?.observe(section);
    return section;
  });
}
function sectionHead(i) {
  const figures = [isPaid(i) ? `${number(run.allTokens[i])} tokens` : "", isPaid(i) ? money(run.allCost[i],
    run.unpriced[i]) : "", UNTIMED.includes(kind(i)) ? "" : duration(run.all[i])].filter(Boolean).join(" · ");
  return h("header", {}, icon(markOf(i)), inspectLink(i), tags(i), h("span", { class: "grow" }), h("i", {}, figures));
}
const inspectLink = i => button(name(i), () => select(i, { push: true, inspect: true }), { class: "link" });
async function fillSection(section) {
  const i = section.row;
  section.filled = true;
  section.lastElementChild.replaceChildren(...await acts(i));
  markHits(section);
}
async function acts(i) {
  const event = run.at[i] >= 0 ? await body(run, run.at[i]) : null;
  if (kind(i) === "turn") return turnActs(i, event);
  if (kind(i) === "cell") return cellActs(i, event);
  if (kind(i) === "node") return [childStrip(i)];
  if (kind(i) === "sub") return [subStrip([i])];
  if (!event) return [...childrenOf(i)].map(lineOf);
  const made = blocks(i, event, await elsewhere(i, event));
  return made.slice(0, -1); // without the event's JSON
}
async function turnActs(i, event) {
  const below = childrenOf(i), calls = below.length ? [] : (event.tool_calls || []).map(callBlock);
  const said = prose(event, below);
  const parts = [said ? h("div", { class: "reply" }, readableBlock(said)) : null, ...calls];
  for (const child of below) parts.push(...await acts(child));
  return parts.filter(Boolean);
}
// A reply without the code block that stands below it as a cell.
function prose(event, below) {
  const whole = show(event.response).trim(), ran = below.some(child => kind(child) === "cell");
  return ran && !event.tool_calls?.length ? whole.replace(/```\w*\n[^]*?(?:\n```|$)[^]*/, "").trim() : whole;
}
function readableBlock(words) {
  const [box, raw] = readable(words);
  return [raw, box];
}
async function cellActs(i, event) {
  const at = /line (\d+), in <module>/.exec(show(event.traceback || ""));
  const results = [text("Output", event.stdout), text("Value", event.value, { code: "python" }),
    event.error ? errorBlock(tracebackOf(event)) : null, ...madeImages(event),
    "final" in event ? text("FINAL", show(event.final)) : null];
  return [text(name(i), event.code, { code: "python", at: at ? +at[1] : 0 }), ...strips(i), ...results].filter(Boolean);
}
// What a cell called: its sub-calls on one strip, a strip for each child, a line for each tool.
function strips(i) {
  const below = childrenOf(i).flatMap(child => kind(child) === "batch" ? childrenOf(child) : [child]);
  const subs = below.filter(child => kind(child) === "sub"), found = subs.length ? [subStrip(subs, i)] : [];
  return [...found, ...below.filter(child => kind(child) !== "sub").map(child => kind(child) === "node"
    ? childStrip(child) : lineOf(child))];
}
function lineOf(i) {
  return h("p", { class: "line" }, icon(markOf(i)), inspectLink(i), " ", told(i));
}
function foldedStrip(title, fill) {
  const strip = h("details", { class: "strip" }, h("summary", {}, title), h("div", { class: "acts" }));
  strip.fill = async () => {
    if (strip.filled) return;
    strip.filled = true;
    strip.lastElementChild.replaceChildren(...await fill());
    markHits(strip);
  };
  strip.addEventListener("toggle", () => { if (strip.open) strip.fill(); });
  return strip;
}
function subStrip(subs, above) {
  const sum = column => subs.reduce((total, i) => total + column[i], 0);
  const wide = Math.max(0, ...subs.map(i => run.width[run.parent[i]]), above ? run.width[above] : 0);
  const title = [counted(subs.length, "call"), subs.length > 1 && wide > 1 ? wide + " at once" : "",
    money(sum(run.allCost), sum(run.unpriced))].filter(Boolean).join(" · ");
  return foldedStrip([icon("sub"), h("b", {}, title)], () => [...subs.slice(0, 200).map(oneSub),
    subs.length > 200 ? h("p", { class: "empty" }, `… and ${number(subs.length - 200)} more in the tree`) : ""]);
}
function oneSub(i) {
  return foldedStrip([icon(markOf(i)), h("b", {}, name(i)), " ", told(i)], async () => {
    const event = await body(run, run.at[i]);
    const asked = Array.isArray(event.prompt) ? event.prompt.map(message => contentText(message?.content)).join("\n\n")
      : show(event.prompt);
    return [text("Prompt", asked), text("Reply", event.response, { readable: true })].filter(Boolean);
  });
}
function childStrip(i) {
  const figures = [isPaid(i) ? money(run.allCost[i], run.unpriced[i]) : "", duration(run.all[i])].filter(Boolean);
  return foldedStrip([icon("node"), h("b", {}, name(i)), " ", told(i), h("i", {}, figures.join(" · "))], async () => {
    const list = sections(i, null);
    for (const section of list) await fillSection(section);
    return list;
  });
}

// - moving in it
function outlineOf(node) {
  const lines = sectionRows(node).slice(0, 2000).map(i => {
    const line = button("", () => goSection(i), { class: isError(i) || run.errors[i] ? "bad" : "" });
    line.append(icon(markOf(i)), h("b", {}, name(i)), h("span", { dir: "auto" }, run.texts[i]));
    return line;
  });
  return h("nav", { class: "outline", "aria-label": "Outline" }, lines);
}
function scriptBar(nodes, node) {
  const pick = h("select", { "aria-label": "Node", onchange: event => goSection(+event.target.value) },
    nodes.slice(0, 500).map(i => h("option", { value: i }, "\u00a0".repeat(2 * Math.min(run.depth[i], 9)) +
      `${name(i)}: ${run.texts[i]}`)));
  pick.value = node;
  return h("div", { class: "turns" },
    button("‹ Previous turn", () => byTurn(-1), { "data-shortcut": "[" }),
    button("Next turn ›", () => byTurn(1), { "data-shortcut": "]" }), nodes.length > 1 ? pick : null);
}
const allSections = () => [...$("v5").querySelectorAll("#script > .act")];
function byTurn(by) {
  if (STATE.v !== 5) return;
  const list = allSections().filter(section => kind(section.row) === "turn");
  const here = list.findLastIndex(section => section.getBoundingClientRect().top < scriptTop() + 20);
  const next = list[Math.max(0, Math.min(list.length - 1, here + by))];
  if (next) goSection(next.row);
}
function goSection(row) {
  go({ e: rowId(row) });
  showTranscript();
}
const scriptTop = () => ($("v5").querySelector(".turns")?.getBoundingClientRect().height || 0) + stickyTop();
const stickyTop = () => getComputedStyle($("bar")).position === "sticky" ? $("bar").offsetHeight + 50 : 0;
async function toSection(row) {
  const list = allSections(), place = list.findIndex(one => row >= one.row && row < one.row + one.size);
  if (place < 0) return;
  // What stands just above is filled first: it would push the section away as it came into view.
  for (const near of list.slice(Math.max(0, place - 4), place + 1)) if (!near.filled) await fillSection(near);
  const section = list[place];
  scrollBy(0, section.getBoundingClientRect().top - scriptTop());
  section.focus({ preventScroll: true });
}

// - on paper: the whole of it, unfolded as far as that is bearable
const PRINTED_ROWS = 2000;
async function fillPrint() {
  if (!run || $("print").run === run) return;
  const roots = run.count ? rowsOf("node").filter(i => run.level[i] === 0) : [];
  $("print").run = run;
  $("print").replaceChildren();
  for (const root of roots.length ? roots : [-1]) {
    const list = sections(root, null);
    $("print").append(h("h2", {}, root < 0 ? "Events" : run.texts[root]), ...list);
    for (const section of list.slice(0, PRINTED_ROWS)) await fillSection(section);
  }
  if (run.count <= PRINTED_ROWS) await unfold($("print"));
}
async function unfold(box) {
  for (const more of box.querySelectorAll(".more")) more.click();
  for (const strip of box.querySelectorAll("details:not([open])")) {
    strip.open = true;
    await strip.fill();
    await unfold(strip.lastElementChild);
  }
}
