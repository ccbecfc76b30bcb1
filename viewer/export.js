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
    event: i => run.at[i], level: i => run.level[i], depth: i => run.depth[i], kind, name, text: i => run.texts[i],
    model: i => run.models[run.model[i]],
    start_ms: i => run.start[i], end_ms: i => run.end[i], self_ms: i => run.own[i],
    input: i => run.input[i], output: i => run.output[i], cached: i => run.cached[i], reasoning: i => run.reasoning[i],
    cost_usd: i => run.cost[i] < 0 ? "?" : run.cost[i], total_tokens: i => run.allTokens[i],
    total_cost_usd: i => run.allCost[i], unpriced_calls: i => run.unpriced[i], error: i => Number(isError(i)),
  };
  const lines = [...run.level.keys()].map(i => Object.values(columns).map(value => cell(value(i))).join(","));
  return [Object.keys(columns).join(","), ...lines].join("\r\n") + "\r\n";
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

