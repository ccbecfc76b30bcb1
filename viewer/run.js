// --- what is embedded
const parsed = new Promise(done => document.readyState === "loading" ? addEventListener("DOMContentLoaded", done)
  : done());
async function block(id) {
  if (!$(id)) await parsed;
  const element = $(id);
  if (!element) return "";
  if (element.type.endsWith("json")) return element.textContent;
  const packed = element.textContent;
  const bytes = Uint8Array.fromBase64?.(packed) ?? Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
async function openRun(place) {
  const index = JSON.parse(await block("r" + place)), count = index.cols.level.length;
  const opened = { place, meta: RUNS[place], count, base: index.base, names: index.names, models: index.models,
    texts: index.texts.split("\n"), chunks: new Map() };
  const wide = new Set(["start", "end", "all", "own", "cost", "allCost", "allTokens", "input", "output", "cached"]);
  for (const [name, column] of Object.entries(index.cols)) {
    opened[name] = (wide.has(name) ? Float64Array : Int32Array).from(column);
    index.cols[name] = null;
  }
  return relate(opened);
}
function relate(r) {
  r.parent = new Int32Array(r.count).fill(-1);
  r.size = new Int32Array(r.count).fill(1);
  r.rowAt = new Int32Array(r.meta.events).fill(-1);
  r.open = new Uint8Array(r.count);
  const path = [];
  for (let i = 0; i < r.count; i++) {
    path.length = r.level[i];
    if (path.length) r.parent[i] = path[path.length - 1];
    path.push(i);
    if (r.at[i] >= 0) r.rowAt[r.at[i]] = i;
  }
  for (let i = r.count - 1; i > 0; i--) if (r.parent[i] >= 0) r.size[r.parent[i]] += r.size[i];
  r.time = timeAxis(r);
  return r;
}
function chunk(r, place) {
  if (!r.chunks.has(place)) {
    if (r.chunks.size > 12) r.chunks.delete(r.chunks.keys().next().value);
    r.chunks.set(place, block(`r${r.place}c${place}`));
  }
  return r.chunks.get(place);
}
async function body(r, at) {
  const lines = (await chunk(r, Math.floor(at / CHUNK))).split("\n");
  return JSON.parse(lines[at % CHUNK] || "{}");
}
const kind = i => KINDS[run.kind[i]];
const name = i => run.names[run.name[i]];
const rowId = i => run.at[i] >= 0 ? String(run.at[i]) : "g" + i;
function rowOf(id) {
  if (/^g\d+$/.test(id)) return +id.slice(1) < run.count ? +id.slice(1) : -1;
  return /^\d+$/.test(id) ? (run.rowAt[id] ?? -1) : -1;
}
const isError = i => (run.flags[i] & ERROR) > 0;
function childrenOf(i) {
  const found = [];
  for (let at = i + 1; at < i + run.size[i]; at += run.size[at]) found.push(at);
  return found;
}

