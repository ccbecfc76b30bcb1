// --- search: names at once, bodies block by block
const SEARCH = { rows: new Set(), list: [], at: -1, ticket: 0, sorted: true };
const NOISE = new Set([
  "v", "event", "kind", "trajectory_id", "call_id", "parent_call_id", "timestamp", "node", "key", "id", "role", "type",
  "tool_call_id", "tool_call_ids", "media_type", "sha256", "_at", "stop_reason", "status", "depth",
]);
async function search() {
  const wanted = STATE.q.toLowerCase(), ticket = ++SEARCH.ticket, r = run;
  Object.assign(SEARCH, { rows: new Set(), list: [], at: -1, sorted: true });
  if (wanted) {
    for (let i = 0; i < r.count; i++) {
      if (`${r.names[r.name[i]]} ${r.texts[i]}`.toLowerCase().includes(wanted)) found(i);
    }
    showHits(true);
    for (let place = 0; place < r.meta.chunks; place++) {
      const lines = await chunk(r, place);
      if (ticket !== SEARCH.ticket || r !== run) return;
      searchChunk(lines, place * CHUNK, wanted);
      if (place % 8 === 0) showHits(true);
    }
  }
  showHits(false);
}
function searchChunk(lines, first, wanted) {
  const raw = JSON.stringify(wanted).slice(1, -1).replaceAll("<", "\\u003c");
  const plain = raw.replaceAll("\\u003c", "<"), low = lines.toLowerCase();
  if (!low.includes(raw) && !low.includes(plain)) return;
  lines.split("\n").forEach((line, i) => {
    const lower = line.toLowerCase();
    if ((lower.includes(raw) || lower.includes(plain)) && inBody(JSON.parse(line), wanted)) found(run.rowAt[first + i]);
  });
}
function found(row) {
  if (row < 0 || SEARCH.rows.has(row)) return;
  SEARCH.rows.add(row);
  SEARCH.list.push(row);
  SEARCH.sorted = false;
  element(row)?.classList.add("hit");
}
function inBody(event, wanted) {
  const stack = [event];
  while (stack.length) {
    for (const [key, value] of Object.entries(stack.pop())) {
      if (NOISE.has(key)) continue;
      if (value && typeof value === "object") stack.push(value);
      else if (String(value).toLowerCase().includes(wanted)) return true;
    }
  }
  return false;
}
function showHits(going) {
  const count = number(SEARCH.list.length) + (going ? "…" : "");
  $("hits").textContent = !STATE.q ? "" : SEARCH.at < 0 ? count : `${number(SEARCH.at + 1)} / ${count}`;
  if (!going) for (const old of $("rows").children) old.classList.toggle("hit", SEARCH.rows.has(old.row));
}
function nextHit(by) {
  if (!SEARCH.list.length) return;
  sortHits();
  SEARCH.at = (Math.max(SEARCH.at, by < 0 ? 0 : -1) + by + SEARCH.list.length) % SEARCH.list.length;
  const typing = document.activeElement === $("q");
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
function markText(box) {
  const wanted = STATE.q.toLowerCase(), ranges = [];
  if (!window.Highlight) return;
  const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  while (wanted && walker.nextNode() && ranges.length < 2000) {
    const content = walker.currentNode.data.toLowerCase();
    for (let at = content.indexOf(wanted); at >= 0; at = content.indexOf(wanted, at + wanted.length)) {
      const range = new Range();
      range.setStart(walker.currentNode, at);
      range.setEnd(walker.currentNode, Math.min(at + wanted.length, walker.currentNode.length));
      ranges.push(range);
    }
  }
  CSS.highlights.set("hit", new Highlight(...ranges));
}

