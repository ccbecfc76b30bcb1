// --- export
function save(content, file, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([content], { type })), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}
function asCsv() {
  const cell = value => {
    if (typeof value === "number") return value;
    const inert = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
    return '"' + inert.replaceAll('"', '""') + '"';
  };
  const columns = {
    event: i => run.at[i], level: i => run.level[i], depth: i => run.depth[i], kind, name,
    text: i => run.texts[i], outcome: i => run.outcomes[i],
    model: i => run.models[run.model[i]],
    start_ms: i => run.start[i], end_ms: i => run.end[i], self_ms: i => run.own[i],
    input: i => run.input[i], output: i => run.output[i], cached: i => run.cached[i], reasoning: i => run.reasoning[i],
    cost_usd: i => run.cost[i] < 0 ? "?" : run.cost[i], total_tokens: i => run.allTokens[i],
    total_cost_usd: i => run.allCost[i], unpriced_calls: i => run.unpriced[i], error: i => Number(isError(i)),
  };
  const lines = [...run.level.keys()].map(i => Object.values(columns).map(value => cell(value(i))).join(","));
  return [Object.keys(columns).join(","), ...lines].join("\r\n") + "\r\n";
}
// speedscope's own format: a profile for each node, in which calls that ran at once are one frame.
function asSpeedscope() {
  const frames = [], known = new Map(), nodes = rowsOf("node");
  const frame = words => {
    if (!known.has(words)) { known.set(words, frames.length); frames.push({ name: words }); }
    return known.get(words);
  };
  const profiles = nodes.map((node, n) => {
    const events = [];
    stacked(node, run.start[node], run.end[node], events, frame, true);
    return { type: "evented", name: `${n + 1} ${name(node)}: ${run.texts[node]}`.slice(0, 80), unit: "milliseconds",
      startValue: run.start[node], endValue: run.end[node], events };
  });
  return JSON.stringify({ $schema: "https://www.speedscope.app/file-format-schema.json", name: run.meta.id,
    exporter: "rlm", shared: { frames }, profiles });
}
function stacked(row, from, to, events, frame, top = false) {
  const begin = Math.max(from, run.start[row]), end = Math.max(begin, Math.min(to, run.end[row]));
  const label = name(row).replace(/ \d+$/, "");
  events.push({ type: "O", frame: frame(label), at: begin });
  if (top || kind(row) !== "node") {
    let at = begin;
    for (const group of atOnce(childrenOf(row))) {
      if (group.length === 1) { stacked(group[0], at, end, events, frame); at = events.at(-1).at; continue; }
      const open = Math.max(at, Math.min(...group.map(i => run.start[i])));
      at = Math.min(end, Math.max(open, ...group.map(i => run.end[i])));
      const many = frame(`${name(group[0])} at once`);
      events.push({ type: "O", frame: many, at: Math.min(open, end) });
      events.push({ type: "C", frame: many, at: Math.max(open, at) });
    }
  }
  events.push({ type: "C", frame: frame(label), at: end });
}
// Siblings in groups whose times overlap.
function atOnce(siblings) {
  const groups = [];
  let reach = -1;
  for (const i of siblings.filter(row => run.end[row] > run.start[row]).sort((a, b) => run.start[a] - run.start[b])) {
    if (groups.length && run.start[i] < reach - 1) groups.at(-1).push(i);
    else groups.push([i]);
    reach = Math.max(reach, run.end[i]);
  }
  return groups;
}
function asTrace() {
  lanes(run);
  const micro = ms => Math.round(ms * 1000);
  const events = [...run.level.keys()].map(i => ({
    name: name(i), cat: kind(i), ph: "X", ts: micro(run.start[i]), dur: micro(run.end[i] - run.start[i]),
    pid: 1, tid: run.thread[i],
    args: { text: run.texts[i], tokens: run.allTokens[i], cost_usd: run.allCost[i], event: run.at[i],
      error: isError(i) },
  }));
  return JSON.stringify({ displayTimeUnit: "ms", otherData: { run: run.meta.id }, traceEvents: events });
}

