// --- what is embedded
const parsed = new Promise(done => document.readyState === "loading" ? addEventListener("DOMContentLoaded", done)
  : done());
async function block(id) {
  if (!$(id)) await parsed;
  const element = $(id);
  if (!element) return "";
  if (element.type.endsWith("json")) return element.textContent;
  const packed = element.textContent;
  return inflated(Uint8Array.fromBase64?.(packed) ?? Uint8Array.from(atob(packed), letter => letter.charCodeAt(0)));
}
async function inflated(bytes) {
  const stream = new DecompressionStream("gzip"), writer = stream.writable.getWriter();
  const written = Promise.all([writer.write(bytes), writer.close()]);
  const reader = stream.readable.getReader(), decoder = new TextDecoder();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += decoder.decode(part.value, { stream: true });
  }
  await written;
  return text + decoder.decode();
}
const FIELDS = { index: "at", total_ms: "all", self_ms: "own", max_concurrency: "width",
  all_errors: "errors", all_tokens: "allTokens", all_cost: "allCost", all_unpriced: "unpriced" };
const FRACTIONS = new Set(["start", "end", "all", "own", "cost", "allCost", "allTokens", "input", "output", "cached"]);
const OPENED = new Map();
function openedRun(place) {
  if (OPENED.size > 3 && !OPENED.has(place)) OPENED.delete(OPENED.keys().next().value);
  if (!OPENED.has(place)) OPENED.set(place, openRun(place));
  return OPENED.get(place);
}
async function openRun(place) {
  const index = JSON.parse(await block("r" + place)), count = index.cols.level.length;
  const opened = { place, meta: RUNS[place], count, base: index.base, names: index.names, models: index.models,
    eventAt: index.lines && new Map(index.lines.map((line, at) => [line, at])), chunks: new Map(),
    texts: index.text.split("\n"), outcomes: index.outcome.split("\n") };
  for (const [field, column] of Object.entries(index.cols)) {
    const name = FIELDS[field] || field;
    opened[name] = (FRACTIONS.has(name) ? Float64Array : Int32Array).from(column);
    index.cols[field] = null;
  }
  return relate(opened);
}
function relate(r) {
  r.parent = new Int32Array(r.count).fill(-1);
  r.size = new Int32Array(r.count).fill(1);
  r.rowAt = new Int32Array(r.meta.events).fill(-1);
  r.groupAt = new Map();
  r.open = new Uint8Array(r.count);
  const path = [];
  for (let i = 0; i < r.count; i++) {
    path.length = r.level[i];
    if (path.length) r.parent[i] = path[path.length - 1];
    path.push(i);
    if (r.at[i] >= 0) r.rowAt[r.at[i]] = i;
    else r.groupAt.set("g" + groupKey(r, i), i);
  }
  for (let i = r.count - 1; i > 0; i--) if (r.parent[i] >= 0) r.size[r.parent[i]] += r.size[i];
  r.time = timeAxis(r);
  return r;
}
// A batch is known by its first event, so that its address holds while the run grows.
function groupKey(r, i) {
  let first = i + 1;
  while (first < r.count && r.at[first] < 0) first++;
  return first < r.count ? r.at[first] : i;
}
function chunk(r, place) {
  if (!r.chunks.has(place)) {
    if (r.chunks.size > 12) r.chunks.delete(r.chunks.keys().next().value);
    r.chunks.set(place, block(`r${r.place}c${place}`));
  }
  return r.chunks.get(place);
}
// The blocks in order, each inflated while those before it are worked on.
async function* allChunks(r) {
  for (let place = 0; place < r.meta.chunks; place++) {
    for (let ahead = 1; ahead < 4 && place + ahead < r.meta.chunks; ahead++) chunk(r, place + ahead);
    yield [await chunk(r, place), place * CHUNK];
  }
}
async function body(r, at) {
  const lines = (await chunk(r, Math.floor(at / CHUNK))).split("\n");
  return JSON.parse(lines[at % CHUNK] || "{}");
}
const kind = i => KINDS[run.kind[i]];
const name = i => run.names[run.name[i]];
const rowId = i => run.at[i] >= 0 ? String(run.at[i]) : "g" + groupKey(run, i);
function rowOf(id) {
  if (run.groupAt.has(id)) return run.groupAt.get(id);
  return /^\d+$/.test(id) ? (run.rowAt[id] ?? -1) : -1;
}
const isError = i => (run.flags[i] & ERROR) > 0;
const isPaid = i => run.allTokens[i] || run.unpriced[i] || run.allCost[i];
function childrenOf(i) {
  const found = [];
  for (let at = i + 1; at < i + run.size[i]; at += run.size[at]) found.push(at);
  return found;
}
function markOf(i) {
  if (isError(i)) return "interrupted";
  return kind(i) === "end" && run.flags[i] & WARNING ? "stopped" : kind(i);
}
function pathOf(row) {
  const path = [];
  for (let i = run.parent[row]; i >= 0 && path.length < 12; i = run.parent[i]) path.unshift(i);
  return path;
}
