// --- charts
function showCharts() {
  const calls = rowsOf("turn", "sub").sort((a, b) => run.end[a] - run.end[b]);
  const charts = calls.length ? [...plots(calls), ...sharesOf(calls)] : [];
  $("v3").replaceChildren(calls.length ? h("div", { class: "charts" }, charts)
    : h("p", { class: "empty" }, "No call has been answered yet."));
}
const rowsOf = (...kinds) => [...run.kind.keys()].filter(i => kinds.includes(kind(i)));
function plots(calls) {
  const of = column => calls.map(i => column[i]), unknown = run.meta.unpriced;
  let sum = 0;
  const spent = calls.map(i => sum += Math.max(0, run.cost[i]));
  const fresh = calls.map(i => Math.max(0, run.input[i] - run.cached[i]));
  const cost = "cost" + (unknown ? ` (without ${number(unknown)} calls of unknown price)` : "");
  const cached = ["cached input", "batch", of(run.cached)];
  const tokens = [["input", "turn", fresh], cached, ["output", "cell", of(run.output)]];
  return [
    plot("Tokens per call", calls, tokens, number),
    plot("Duration per call", calls, [["duration", "sub", of(run.own)]], duration),
    plot("Cumulative cost", calls, [[cost, "end", spent]], value => money(value)),
  ];
}
function sharesOf(calls) {
  const model = i => run.models[run.model[i]], tool = i => kind(i) === "cell" ? "execute_code" : name(i);
  const costs = tally(calls, model, i => Math.max(0, run.cost[i]));
  return [
    shares("Where the time went", byKind(), duration, "own time of each kind; parallel calls add up"),
    shares("Calls by model", tally(calls, model, () => 1), number, "", true),
    shares("Cost by model", costs, value => money(value), run.meta.unpriced ? "calls with a known price" : ""),
    shares("Tools", tally(rowsOf("cell", "tool"), tool, () => 1), number, "calls of each tool", true),
  ];
}
function tally(rows, label, amount) {
  const sums = new Map();
  for (const i of rows) sums.set(label(i) || "unknown", (sums.get(label(i) || "unknown") || 0) + amount(i));
  return [...sums].sort((a, b) => b[1] - a[1]);
}
function byKind() {
  const sums = tally(rowsOf("turn", "sub", "cell", "tool"), kind, i => run.own[i]);
  return sums.map(([k, sum]) => [kindName(k) + "s", sum, k]);
}
function plot(title, calls, series, format) {
  const bars = binned(calls, series), most = Math.max(0, ...bars.map(bar => bar.whole));
  const chart = s("svg", { viewBox: `0 0 ${bars.length * 10} 100`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${title}: ${number(calls.length)} calls, at most ${format(most)}` });
  chart.append(...bars.map((bar, at) => barOf(bar, at * 10, most, series, format)));
  const legend = series.map(([label, look]) => keyOf(swatch(look), label));
  return h("figure", {}, h("figcaption", {}, h("b", {}, title), legend),
    h("div", { class: "plot" },
      h("div", { class: "y" }, h("span", {}, format(most)), h("span", {}, "0")), chart,
      h("div", { class: "x" }, h("span", {}, "first call"), h("span", {}, `call ${number(calls.length)}`))));
}
function binned(calls, series) {
  const bins = Math.min(calls.length, 160), per = calls.length / bins;
  const whole = at => series.reduce((sum, [, , values]) => sum + values[at], 0);
  return Array.from({ length: bins }, (_, bin) => {
    const from = Math.floor(bin * per), to = Math.max(from + 1, Math.floor((bin + 1) * per));
    let best = from;
    for (let at = from; at < to; at++) if (whole(at) > whole(best)) best = at;
    return { row: calls[best], values: series.map(([, , values]) => values[best]), whole: whole(best) };
  });
}
const swatch = look => s("svg", { class: "k-" + look, viewBox: "0 0 16 16" }, s("path", { d: "M2 2h12v12H2z" }));
function barOf(bar, x, most, series, format) {
  const group = s("g", {}), hint = s("title", {});
  let y = 100;
  bar.values.forEach((value, at) => {
    const height = most ? value / most * 100 : 0;
    y -= height;
    group.append(s("rect", { class: "k-" + series[at][1], x: x + 0.5, y, width: 9, height, fill: "currentColor" }));
  });
  put(hint, `${name(bar.row)}: ${series.map(([label], at) => `${label} ${format(bar.values[at])}`).join(", ")}`);
  group.append(hint);
  group.addEventListener("click", () => {
    select(bar.row, { push: true, reveal: true });
    document.body.classList.add("open");
  });
  return group;
}
const SLICES = ["turn", "sub", "cell", "tool", "end", "interrupted", "other"];
function shares(title, rows, format, note, round = false) {
  const whole = rows.reduce((sum, row) => sum + row[1], 0), most = rows.length ? rows[0][1] : 0;
  const lines = rows.slice(0, 12).map(([label, value, look], at) => {
    const fill = h("span", { class: "fill k-" + (look || slice(at)) });
    fill.style.width = (most ? value / most * 100 : 0) + "%";
    const part = whole ? Math.round(value / whole * 100) : 0;
    return [h("span", { class: "label", title: label }, label), h("div", { class: "track" }, fill),
      h("span", {}, `${format(value)} · ${part} %`)];
  });
  let content = h("div", { class: "share" }, lines);
  if (!rows.length) content = h("p", { class: "empty" }, "none");
  else if (round && rows.length > 1) content = h("div", { class: "donut" }, donut(rows, whole), content);
  return h("figure", {}, h("figcaption", {}, h("b", {}, title), note), content);
}
const slice = at => SLICES[Math.min(at, SLICES.length - 1)];
function donut(rows, whole) {
  const ring = s("svg", { viewBox: "0 0 36 36", "aria-hidden": "true" }), gap = 0.6;
  const circle = { cx: 18, cy: 18, r: 15.915, fill: "none", stroke: "currentColor", "stroke-width": 5 };
  let turned = 25;
  rows.forEach(([, value], at) => {
    const part = value / whole * 100, dashes = `${Math.max(0.1, part - gap)} ${100 - part + gap}`;
    const look = { class: "k-" + slice(at), "stroke-dasharray": dashes, "stroke-dashoffset": turned };
    ring.append(s("circle", { ...circle, ...look }));
    turned -= part;
  });
  return ring;
}

