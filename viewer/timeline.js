// --- the time axis: long stretches in which nothing ran are drawn short
function timeAxis(r) {
  let total = 1;
  const spans = [];
  for (let i = 0; i < r.count; i++) {
    const k = KINDS[r.kind[i]];
    total = Math.max(total, r.end[i]);
    if (k === "turn") spans.push([r.start[i], r.start[i] + r.own[i]]);
    else if (k !== "node" && k !== "batch" && k !== "detached") spans.push([r.start[i], r.end[i]]);
  }
  spans.sort((a, b) => a[0] - b[0]);
  const holes = [];
  let reach = 0;
  for (const [start, end] of spans) {
    if (start - reach > 2000) holes.push([reach, start]);
    reach = Math.max(reach, end);
  }
  const busy = total - holes.reduce((sum, [a, b]) => sum + b - a, 0);
  const gaps = holes.filter(([a, b]) => b - a > Math.max(2000, busy * 0.15)), pad = busy * 0.03;
  return axis(total, gaps, pad);
}
function axis(total, gaps, pad) {
  const short = gaps.reduce((sum, [a, b]) => sum + b - a - pad, 0), length = total - short;
  return {
    total, gaps, length,
    share(t) {
      let at = t;
      for (const [a, b] of gaps) if (t >= b) at -= b - a - pad; else if (t > a) at -= (t - a) * (1 - pad / (b - a));
      return Math.min(1, Math.max(0, at / length));
    },
    when(x) {
      let t = x * length;
      for (const [a, b] of gaps) if (t >= a + pad) t += b - a - pad; else if (t > a) t = a + (t - a) * (b - a) / pad;
      return t;
    },
  };
}

// --- the timeline: what ran when; parallel siblings in lanes
const FLAME = { from: 0, to: 1, top: 0, squeeze: true, hover: -1 };
const LANE = 19;
function lanes(r) {
  if (r.lane) return;
  const slot = new Int32Array(r.count), tall = new Int32Array(r.count).fill(1), offsets = new Map();
  for (let i = r.count - 1; i >= 0; i--) if (r.size[i] > 1) tall[i] = 1 + stack(r, i, slot, tall, offsets);
  r.lane = new Int32Array(r.count);
  r.thread = new Int32Array(r.count).fill(1);
  let threads = 1, top = 0;
  for (let i = 0; i < r.count; i++) {
    if (r.parent[i] < 0) {
      r.lane[i] = top;
      r.thread[i] = threads++;
      top += tall[i];
    }
    if (!offsets.has(i)) continue;
    const { heights, begin } = offsets.get(i), own = heights.map((_, at) => at ? ++threads : r.thread[i]);
    for (let at = i + 1; at < i + r.size[i]; at += r.size[at]) {
      r.lane[at] = r.lane[i] + 1 + begin[slot[at]];
      r.thread[at] = own[slot[at]];
    }
  }
  r.lanes = top;
}
function stack(r, parent, slot, tall, offsets) {
  const ends = [], heights = [];
  for (let at = parent + 1; at < parent + r.size[parent]; at += r.size[at]) {
    let place = ends.findIndex(end => end <= r.start[at] + 1);
    if (place < 0) place = Math.min(ends.length, 255);
    slot[at] = place;
    ends[place] = Math.max(ends[place] || 0, r.end[at]);
    heights[place] = Math.max(heights[place] || 0, tall[at]);
  }
  let sum = 0;
  const begin = heights.map(height => (sum += height) - height);
  offsets.set(parent, { heights, begin });
  return sum;
}
function showTimeline() {
  lanes(run);
  const canvas = h("canvas", { tabindex: 0, role: "img",
    "aria-label": "Timeline: arrow keys pan, plus and minus zoom, 0 fits, j and k choose the next and previous row" });
  $("v2").className = "flame";
  $("v2").replaceChildren(flameBar(), concurrency(), canvas, h("div", { class: "tip", hidden: "" }));
  canvas.addEventListener("wheel", flameWheel, { passive: false });
  canvas.addEventListener("pointerdown", flameDrag);
  canvas.addEventListener("pointermove", flameHover);
  canvas.addEventListener("pointerleave", () => flameHover(null));
  canvas.addEventListener("dblclick", event => zoomTo(rowUnder(event)));
  canvas.addEventListener("keydown", flameKey);
  Object.assign(FLAME, { from: 0, to: 1, top: 0, canvas, hover: -1 });
  draw();
}
function flameBar() {
  const squeeze = button("Shorten idle gaps", () => {
    FLAME.squeeze = !FLAME.squeeze;
    squeeze.setAttribute("aria-pressed", FLAME.squeeze);
    fit();
  }, { class: "chip", "aria-pressed": FLAME.squeeze });
  return h("div", { class: "row" },
    button("−", () => zoom(1.6), { class: "icon", "aria-label": "Zoom out" }),
    button("+", () => zoom(0.625), { class: "icon", "aria-label": "Zoom in" }),
    button("Fit", fit), run.time.gaps.length ? squeeze : null,
    ["node", "turn", "sub", "cell", "tool"].map(k => keyOf(icon(k), kindName(k))));
}
// How many calls of a model ran at once, as a stepped area; the view box pans and zooms it.
function concurrency() {
  // A lane's next call begins where its last one ended, to the millisecond.
  const edges = rowsOf("turn", "sub").filter(i => run.own[i] > 1)
    .flatMap(i => [[run.start[i] + 1, 1], [run.start[i] + run.own[i], -1]]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let active = 0, most = 1;
  const steps = edges.map(([at, by]) => { active += by; most = Math.max(most, active); return [at, active]; });
  FLAME.steps = steps;
  FLAME.most = most;
  FLAME.strip = s("svg", { class: "k-sub", preserveAspectRatio: "none", role: "img",
    "aria-label": `Calls at once: at most ${number(most)}` }, s("path", { fill: "currentColor" }));
  return h("div", { class: "strip-chart" }, h("span", {}, `at once: up to ${number(most)}`), FLAME.strip);
}
function drawStrip() {
  const { steps, most, strip } = FLAME;
  let path = "M0 1", high = 1;
  for (const [at, active] of steps) {
    const x = across(at).toFixed(6);
    path += `L${x} ${high}L${x} ${high = 1 - active / most}`;
  }
  strip.firstChild.setAttribute("d", path + "L1 1Z");
  strip.setAttribute("viewBox", `${FLAME.from} 0 ${FLAME.to - FLAME.from} 1`);
}
const keyOf = (mark, label) => h("span", { class: "key" }, mark, label);
const across = t => FLAME.squeeze ? run.time.share(t) : t / run.time.total;
function fit() {
  Object.assign(FLAME, { from: 0, to: 1, top: 0 });
  draw();
}
function zoom(by, at = 0.5) {
  const middle = FLAME.from + (FLAME.to - FLAME.from) * at,
    width = Math.min(1, Math.max(1e-7, (FLAME.to - FLAME.from) * by));
  FLAME.from = Math.max(0, Math.min(1 - width, middle - width * at));
  FLAME.to = FLAME.from + width;
  draw();
}
function zoomTo(row) {
  if (row < 0) return;
  const from = across(run.start[row]), width = Math.max(1e-7, across(run.end[row]) - from);
  Object.assign(FLAME, { from: Math.max(0, from - width * 0.04), to: Math.min(1, from + width * 1.04) });
  draw();
}
function pan(x, y) {
  const width = FLAME.to - FLAME.from;
  FLAME.from = Math.max(0, Math.min(1 - width, FLAME.from + x * width));
  FLAME.to = FLAME.from + width;
  FLAME.top = Math.max(0, Math.min(run.lanes * LANE - FLAME.high + 30, FLAME.top + y));
  draw();
}
function flameWheel(event) {
  const focused = document.activeElement === FLAME.canvas;
  if (!event.ctrlKey && !focused && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
  event.preventDefault();
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(event.deltaX / FLAME.wide, 0);
  else zoom(event.deltaY > 0 ? 1.2 : 0.83, event.offsetX / FLAME.wide);
}
function flameDrag(event) {
  let { clientX: x, clientY: y } = event, moved = 0;
  const canvas = FLAME.canvas;
  canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = next => {
    moved += Math.abs(next.clientX - x) + Math.abs(next.clientY - y);
    if (moved > 4) pan((x - next.clientX) / FLAME.wide, y - next.clientY);
    x = next.clientX;
    y = next.clientY;
  };
  canvas.onpointerup = canvas.onpointercancel = next => {
    canvas.onpointermove = canvas.onpointerup = null;
    const row = rowUnder(next);
    if (moved <= 4 && row >= 0) { select(row, { push: true }); draw(); document.body.classList.add("open"); }
  };
}
function flameKey(event) {
  const acts = { ArrowLeft: () => pan(-0.1, 0), ArrowRight: () => pan(0.1, 0), ArrowUp: () => pan(0, -LANE * 2),
    ArrowDown: () => pan(0, LANE * 2), "+": () => zoom(0.625), "=": () => zoom(0.625), "-": () => zoom(1.6),
    0: fit, Enter: () => zoomTo(rowOf(STATE.e)) };
  if (!acts[event.key] || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  acts[event.key]();
}
function flameHover(event) {
  const tip = $("v2").querySelector(".tip"), row = event ? rowUnder(event) : -1;
  tip.hidden = row < 0;
  if (row !== FLAME.hover) { FLAME.hover = row; draw(); }
  if (row < 0) return;
  tip.replaceChildren(h("b", {}, name(row)), ` ${duration(run.all[row])} `,
    run.allTokens[row] ? `${number(run.allTokens[row])} tokens ${money(run.allCost[row], run.unpriced[row])} `
    : "", h("span", {}, run.texts[row]));
  tip.style.left = Math.max(0, Math.min(event.offsetX + 12, FLAME.wide - 300)) + "px";
  tip.style.top = event.offsetY + FLAME.canvas.offsetTop + 18 + "px";
}
function rowUnder(event) {
  const lane = Math.floor((event.offsetY - 22 + FLAME.top) / LANE);
  let hit = -1;
  eachShown((i, x, w) => { if (run.lane[i] === lane && event.offsetX >= x - 1 &&
    event.offsetX <= x + Math.max(w, 3)) hit = i; });
  return event.offsetY < 22 ? -1 : hit;
}
function eachShown(act) {
  const scale = FLAME.wide / (FLAME.to - FLAME.from);
  for (let i = 0; i < run.count;) {
    const x = (across(run.start[i]) - FLAME.from) * scale, w = (across(run.end[i]) - FLAME.from) * scale - x;
    if (x > FLAME.wide || x + w < -3) { i += run.size[i]; continue; }
    act(i, x, w);
    i += w < 0.4 ? run.size[i] : 1;
  }
}
function paints() {
  const probe = h("span", { class: "vh" }), found = {};
  document.body.append(probe);
  for (const name of [...KINDS, "error", "text", "muted", "line", "panel", "raised"]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}
function draw() {
  cancelAnimationFrame(FLAME.frame);
  FLAME.frame = requestAnimationFrame(drawNow);
}
function drawNow() {
  const canvas = FLAME.canvas, ratio = devicePixelRatio || 1;
  if (!canvas || $("v2").hidden) return;
  FLAME.wide = canvas.clientWidth;
  FLAME.high = Math.min(Math.max(200, run.lanes * LANE + 40), Math.max(320, innerHeight * 0.68));
  canvas.style.height = FLAME.high + "px";
  canvas.width = FLAME.wide * ratio;
  canvas.height = FLAME.high * ratio;
  const pen = canvas.getContext("2d"), color = paints();
  drawStrip();
  pen.scale(ratio, ratio);
  pen.font = "11px system-ui,sans-serif";
  pen.textBaseline = "middle";
  drawGaps(pen, color);
  pen.save();
  pen.rect(0, 22, FLAME.wide, FLAME.high);
  pen.clip();
  const lastX = new Float64Array(run.lanes + 1).fill(-9), chosen = rowOf(STATE.e);
  eachShown((i, x, w) => drawSpan(pen, color, i, x, w, lastX, chosen));
  pen.restore();
  drawTicks(pen, color);
}
function drawSpan(pen, color, i, x, w, lastX, chosen) {
  const lane = run.lane[i], y = 22 + lane * LANE - FLAME.top, k = kind(i), wide = Math.max(w - 0.5, 1.5);
  if (y < 0 || y > FLAME.high || (w < 1 && x - lastX[lane] < 1)) return;
  lastX[lane] = x + w;
  const own = k === "turn" && run.all[i] ? wide * Math.min(1, run.own[i] / run.all[i]) : wide;
  const solid = SOLID.has(k) || run.size[i] === 1;
  pen.fillStyle = color[isError(i) ? "error" : k];
  pen.globalAlpha = 0.26;
  pen.fillRect(x, y + 1, wide, LANE - 3);
  pen.globalAlpha = solid ? 0.85 : 0;
  pen.fillRect(x, y + 1, Math.max(own, 1.5), LANE - 3);
  pen.globalAlpha = 1;
  if (i === chosen || i === FLAME.hover) outline(pen, color, x, y, wide, i === chosen ? 2 : 1);
  if (w > 60) label(pen, color, i, x, y, w, solid ? own : 0);
}
const SOLID = new Set(["turn", "sub", "tool"]);
function outline(pen, color, x, y, wide, width) {
  pen.strokeStyle = color.text;
  pen.lineWidth = width;
  pen.strokeRect(x + 0.5, y + 1.5, Math.max(wide - 1, 2), LANE - 4);
}
function label(pen, color, i, x, y, w, solid) {
  const left = Math.max(x, 0) + 5, room = Math.min(x + w, FLAME.wide) - left - 4, onSolid = x + solid - left;
  if (room < 34 || (solid && onSolid < 30)) return;
  pen.save();
  pen.beginPath();
  pen.rect(left, y, solid ? Math.min(room, onSolid - 3) : room, LANE);
  pen.clip();
  pen.fillStyle = solid ? color.panel : color.text;
  pen.fillText(name(i) + "  " + run.texts[i].slice(0, 80), left, y + LANE / 2);
  pen.restore();
}
function drawGaps(pen, color) {
  if (!FLAME.squeeze) return;
  const scale = FLAME.wide / (FLAME.to - FLAME.from);
  for (const [a, b] of run.time.gaps) {
    const x = (across(a) - FLAME.from) * scale, w = (across(b) - FLAME.from) * scale - x;
    if (x > FLAME.wide || x + w < 0) continue;
    pen.strokeStyle = color.line;
    pen.lineWidth = 1;
    pen.save();
    pen.beginPath();
    pen.rect(x, 22, w, FLAME.high);
    pen.clip();
    pen.beginPath();
    for (let at = x - FLAME.high; at < x + w; at += 7) { pen.moveTo(at, FLAME.high); pen.lineTo(at + FLAME.high, 0); }
    pen.stroke();
    pen.restore();
    pen.fillStyle = color.muted;
    pen.textAlign = "center";
    pen.fillText("idle " + duration(b - a), x + w / 2, FLAME.high - 9);
    pen.textAlign = "left";
  }
}
// Ticks stand at round times.
const ROUND = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3,
  1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 216e5, 432e5, 864e5];
function ticks() {
  const whole = FLAME.squeeze ? run.time.length : run.time.total, seen = whole * (FLAME.to - FLAME.from);
  const step = ROUND.find(size => size >= seen * 100 / FLAME.wide) || 864e5 * Math.ceil(seen / 864e7);
  const when = x => FLAME.squeeze ? run.time.when(x) : x * run.time.total, list = [];
  const inGap = t => FLAME.squeeze && run.time.gaps.find(([a, b]) => t > a && t < b);
  for (let t = Math.ceil(when(FLAME.from) / step) * step; t <= when(FLAME.to) + step / 1000 && list.length < 400;) {
    const gap = inGap(t);
    if (!gap) list.push({ t, step, x: (across(t) - FLAME.from) / (FLAME.to - FLAME.from) * FLAME.wide });
    t = gap ? Math.ceil(gap[1] / step) * step : t + step;
  }
  return list;
}
function tickLabel(t, step = 60000) {
  if (t < 1000) return +t.toFixed(3) + " ms";
  if (t < 60000) return +(t / 1000).toFixed(3) + " s";
  const minutes = Math.floor(t / 60000 + 1e-9), seconds = Math.round(t / 1000) - minutes * 60;
  const rest = seconds && (minutes < 60 || step < 60000) ? ` ${seconds} s` : "";
  if (minutes < 60) return `${minutes} m${rest}`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} m` : ""}${rest}`;
}
function drawTicks(pen, color) {
  pen.fillStyle = color.muted;
  let free = -1;
  for (const { t, step, x } of ticks()) {
    pen.fillRect(x, 4, 1, 14);
    if (x < free || x > FLAME.wide - 30) continue;
    const words = tickLabel(t, step);
    pen.fillText(words, x + 4, 11);
    free = x + 14 + pen.measureText(words).width;
  }
}

