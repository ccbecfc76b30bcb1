// --- search: names at once, bodies block by block
const SEARCH = { hits: new Map(), list: [], at: -1, ticket: 0, sorted: true, ranges: [], here: -1,
  backwards: false };
const NOISE = new Set([
  "v", "event", "kind", "trajectory_id", "call_id", "parent_call_id", "timestamp", "node", "key", "id", "role", "type",
  "tool_call_id", "tool_call_ids", "media_type", "sha256", "index", "images", "stop_reason", "status", "depth",
]);
const AROUND = 40;
const GROUPED = new RegExp(`^\\s*(\\d{1,3}(?:[${BETWEEN} _]?\\d{3})+)((?:[.,]\\d+)?)\\s*$`);
// What finds a text whatever its case, and a number whatever its separators.
function matcher(wanted, flags = "i") {
  const whole = GROUPED.exec(wanted);
  if (!whole) return new RegExp(escaped(wanted), flags);
  const digits = whole[1].replace(/\D/g, ""), lead = digits.length % 3 || 3;
  const groups = [digits.slice(0, lead), ...digits.slice(lead).match(/\d{3}/g) || []];
  return new RegExp(groups.join(`[${BETWEEN} _]?`) + (whole[2] && "[.,]" + whole[2].slice(1)), flags);
}
const escaped = words => words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
// The same for a line of JSON in which `<` may be written as an escape.
const rawMatcher = wanted =>
  new RegExp(matcher(JSON.stringify(wanted).slice(1, -1)).source.replaceAll("<", "(?:<|\\\\u003c)"), "i");
async function search() {
  const ticket = ++SEARCH.ticket, r = run, wanted = STATE.q;
  Object.assign(SEARCH, { hits: new Map(), list: [], at: -1, sorted: true, ranges: [], here: -1 });
  if (wanted) {
    searchNames(matcher(wanted, "gi"));
    showHits(true);
    const raw = rawMatcher(wanted), each = matcher(wanted, "gi");
    for await (const [lines, first] of allChunks(r)) {
      if (ticket !== SEARCH.ticket || r !== run) return;
      if (raw.test(lines)) searchChunk(lines.split("\n"), first, raw, each);
      if (first % (CHUNK * 8) === 0) showHits(true);
    }
  }
  showHits(false);
}
function searchNames(each) {
  for (let i = 0; i < run.count; i++) {
    const words = `${name(i)} ${run.texts[i]} ${run.outcomes[i]}`;
    if (each.test(words)) found(i, 1, around(words, each));
    each.lastIndex = 0;
  }
}
function searchChunk(lines, first, raw, each) {
  lines.forEach((line, i) => {
    if (!raw.test(line)) return;
    const [count, words] = hitsIn(JSON.parse(line), each);
    if (count) found(run.rowAt[first + i], count, words);
  });
}
function found(row, count, words) {
  if (row < 0) return;
  if (!SEARCH.hits.has(row)) {
    SEARCH.list.push(row);
    SEARCH.sorted = false;
    element(row)?.classList.add("hit");
  }
  SEARCH.hits.set(row, { count, words });
}
// How often it is in the values of an event, and the words around its first place.
function hitsIn(event, each) {
  let count = 0, words = null;
  const queue = [event];
  for (let at = 0; at < queue.length; at++) {
    for (const [key, value] of Object.entries(queue[at])) {
      if (NOISE.has(key)) continue;
      if (value && typeof value === "object") { queue.push(value); continue; }
      const content = String(value), places = content.match(each);
      if (!places) continue;
      count += places.length;
      words ??= around(content, each);
    }
  }
  return [count, words];
}
// [before, the hit, after] in some eighty characters.
function around(content, each) {
  each.lastIndex = 0;
  const [hit] = each.exec(content), end = each.lastIndex, at = end - hit.length;
  each.lastIndex = 0;
  return [(at > AROUND ? "…" : "") + content.slice(Math.max(0, at - AROUND), at), hit,
    content.slice(end, end + AROUND) + (content.length > end + AROUND ? "…" : "")];
}
function showHits(going) {
  const rows = number(SEARCH.list.length) + (going ? "…" : ""), here = SEARCH.ranges.length;
  let words = SEARCH.at < 0 ? rows : `${number(SEARCH.at + 1)} / ${rows}`;
  if (SEARCH.at >= 0 && here > 1) words += ` · ${number(SEARCH.here + 1)} of ${number(here)}`;
  $("hits").textContent = !STATE.q ? "" : going || SEARCH.list.length ? words : "no match";
  if (!going) for (const old of $("rows").children) old.classList.toggle("hit", SEARCH.hits.has(old.row));
  showFound();
}
const LISTED = 60;
function showFound() {
  sortHits();
  const lines = SEARCH.list.slice(0, LISTED).map((row, place) => {
    const { count, words } = SEARCH.hits.get(row), [before, hit, after] = words;
    const line = button("", () => { SEARCH.at = place; openHit(1); }, { "aria-current": place === SEARCH.at });
    line.append(h("span", { class: "where" }, pathOf(row).slice(-2).map(i => name(i) + " › "), h("b", {}, name(row)),
      h("i", {}, count > 1 ? `${number(count)} hits` : "")),
    h("span", { class: "around", dir: "auto" }, before, h("mark", {}, hit), after));
    return line;
  });
  const more = SEARCH.list.length - LISTED;
  if (more > 0) lines.push(h("p", { class: "empty" }, `… and ${counted(more, "more row")}`));
  $("found").replaceChildren(...lines);
  $("found").hidden = !lines.length || !$("found").parentNode.contains(document.activeElement);
}
// The next hit within the event that is shown, then the next event with one.
function nextHit(by) {
  if (!SEARCH.list.length) return;
  const next = SEARCH.here + by;
  if (SEARCH.at >= 0 && SEARCH.list[SEARCH.at] === rowOf(STATE.e) && next >= 0 && next < SEARCH.ranges.length) {
    showRange(next);
    showHits(false);
    return;
  }
  sortHits();
  SEARCH.at = (Math.max(SEARCH.at, by < 0 ? 0 : -1) + by + SEARCH.list.length) % SEARCH.list.length;
  openHit(by);
}
function openHit(by) {
  const typing = $("q").parentNode.contains(document.activeElement);
  SEARCH.backwards = by < 0;
  SEARCH.ranges = [];
  select(SEARCH.list[SEARCH.at], { reveal: true });
  if (typing) $("q").focus({ preventScroll: true });
  showHits(false);
}
function sortHits() {
  if (SEARCH.sorted) return;
  const here = SEARCH.list[SEARCH.at];
  SEARCH.list.sort((a, b) => a - b);
  SEARCH.sorted = true;
  SEARCH.at = SEARCH.list.indexOf(here);
}
// Paint the hits in a part of the page; those of the inspector can be walked through.
function markHits(box) {
  if (!window.Highlight) return;
  const inspector = $("inspector");
  SEARCH.ranges = STATE.q ? rangesOf(inspector.contains(box) ? inspector : box, matcher(STATE.q, "gi")) : [];
  CSS.highlights.set("hit", new Highlight(...SEARCH.ranges));
  if (!STATE.q) CSS.highlights.delete("here");
}
function rangesOf(box, each) {
  const ranges = [], walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  while (walker.nextNode() && ranges.length < 2000) {
    for (const hit of walker.currentNode.data.matchAll(each)) {
      const range = new Range();
      range.setStart(walker.currentNode, hit.index);
      range.setEnd(walker.currentNode, hit.index + hit[0].length);
      ranges.push(range);
    }
  }
  return ranges;
}
function landOnHit() {
  if (!SEARCH.ranges.length) return;
  const inBlocks = SEARCH.ranges.findIndex(range => range.startContainer.parentElement.closest(".blocks"));
  showRange(SEARCH.backwards ? SEARCH.ranges.length - 1 : Math.max(0, inBlocks));
  showHits(false);
}
function showRange(place) {
  const range = SEARCH.ranges[place], box = $("inspector");
  SEARCH.here = place;
  SEARCH.backwards = false;
  CSS.highlights.set("here", new Highlight(range));
  const inner = range.startContainer.parentElement.closest("pre");
  for (const scroller of [inner, box].filter(Boolean)) {
    const hit = range.getBoundingClientRect(), frame = scroller.getBoundingClientRect();
    if (hit.top < frame.top + 60 || hit.bottom > frame.bottom - 20) {
      scroller.scrollTop += hit.top - frame.top - Math.min(160, frame.height / 3);
    }
  }
}
