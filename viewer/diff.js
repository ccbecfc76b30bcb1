// --- two runs compared
// Pairs of places in two lists, -1 where the other has none: the shortest edit script (Myers), of what lies between
// a common beginning and end; where the two differ too much for that, by place.
function aligned(left, right) {
  let head = 0, tail = 0;
  const most = Math.min(left.length, right.length);
  while (head < most && left[head] === right[head]) head++;
  while (tail < most - head && left.at(-1 - tail) === right.at(-1 - tail)) tail++;
  const pairs = Array.from({ length: head }, (_, at) => [at, at]);
  const middle = edits(left.slice(head, left.length - tail), right.slice(head, right.length - tail));
  for (const [a, b] of middle) pairs.push([a < 0 ? -1 : a + head, b < 0 ? -1 : b + head]);
  for (let at = tail; at > 0; at--) pairs.push([left.length - at, right.length - at]);
  return pairs;
}
const MOST_EDITS = 600;
function edits(left, right) {
  const trace = furthest(left, right), pairs = [];
  let a = left.length, b = right.length;
  if (!trace) return [...left.map((_, at) => [at, at < b ? at : -1]), ...right.map((_, at) => [-1, at]).slice(a)];
  for (let d = trace.length - 1; d >= 0; d--) {
    const reach = trace[d], k = a - b, down = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1));
    const before = down ? k + 1 : k - 1, x = d ? reach.get(before) : 0, y = d ? x - before : 0;
    while (a > x && b > y && a > 0 && b > 0 && left[a - 1] === right[b - 1]) pairs.push([--a, --b]);
    if (d) pairs.push(down ? [-1, --b] : [--a, -1]);
  }
  return pairs.reverse();
}
// For each number of edits, how far in the left list each diagonal had come before it; null past MOST_EDITS.
function furthest(left, right) {
  const reach = new Map([[1, 0]]), trace = [];
  for (let d = 0; d <= Math.min(MOST_EDITS, left.length + right.length); d++) {
    trace.push(new Map(reach));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1)) ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < left.length && x - k < right.length && left[x] === right[x - k]) x++;
      reach.set(k, x);
      if (x >= left.length && x - k >= right.length) return trace;
    }
  }
  return null;
}

// - the steps of a run
const DIFF_STEPS = 2000;
const STEP_PARTS = {
  node: event => ({ Question: event.prompt }),
  turn: event => ({ Reply: event.response, Calls: (event.tool_calls || []).map(call => call?.arguments?.code ??
    `${call?.name} ${show(call?.arguments)}`).join("\n\n") }),
  sub: event => ({ Prompt: contentOf(event.prompt), Reply: event.response }),
  cell: event => ({ Code: event.code, Output: [event.stdout, event.value].filter(Boolean).map(show).join("\n"),
    Error: tracebackOf(event) }),
  tool: event => ({ Arguments: show(event.arguments), Result: contentOf(event.tool_results) }),
  end: event => ({ Answer: event.response, Status: event.status, Error: errorText(event.error) }),
};
const errorText = error => error && typeof error === "object"
  ? [error.type, error.message].filter(Boolean).join(": ") : show(error ?? "");
// What was asked decides which steps belong together; what came of it whether they are the same.
const ASKED = ["Question", "Prompt", "Code", "Arguments"];
async function stepsOf(r) {
  const found = [];
  let batch = [];
  const close = () => { found.push(...batch.sort((a, b) => a.asked < b.asked ? -1 : 1)); batch = []; };
  for (let i = 0; i < r.count && found.length < DIFF_STEPS; i++) {
    const k = KINDS[r.kind[i]], parts = STEP_PARTS[k] && r.at[i] >= 0 ? STEP_PARTS[k](await body(r, r.at[i])) : null;
    if (!parts) continue;
    const texts = Object.entries(parts).map(([title, value]) => [title, contentText(value ?? "")]);
    const asked = texts.filter(([title]) => ASKED.includes(title)).map(([, words]) => words);
    const words = [r.texts[i], r.outcomes[i]].filter(Boolean).join(" → ");
    const step = { i, at: r.at[i], name: r.names[r.name[i]], words, texts,
      asked: JSON.stringify([k, r.names[r.name[i]], asked]), all: JSON.stringify(texts) };
    if (k !== "sub") close();
    (k === "sub" ? batch : found).push(step); // which call of a batch began first is chance
  }
  close();
  return found.slice(0, DIFF_STEPS);
}
async function compare(a, b) {
  const [left, right] = [await stepsOf(await openedRun(a)), await stepsOf(await openedRun(b))];
  return aligned(left.map(step => step.asked), right.map(step => step.asked)).map(([x, y]) => {
    const one = left[x], other = right[y], state = !other ? "left" : !one ? "right"
      : one.all === other.all ? "same" : "changed";
    return { state, one, other };
  });
}

// - what is shown of it
const DELTAS = [["Calls", "calls", number], ["Tokens", "tokens", number],
  ["Cost", "cost_usd", value => money(value || 0, value === null)], ["Duration", "duration_ms", duration],
  ["Errors", "errors", number], ["Depth", "depth_reached", number]];
const STEP_WORDS = { same: "same", changed: "differs", left: "only A", right: "only B" };
async function showComparison(a, b) {
  const box = $("diff"), steps = await compare(a, b), first = steps.findIndex(step => step.state !== "same");
  const jump = first >= 0
    ? button("First divergence: " + (steps[first].one || steps[first].other).name, () => {
      const row = box.querySelector("#divergence");
      row.open = true;
      row.scrollIntoView({ block: "center" });
    }, { class: "link" })
    : h("p", {}, "Both runs took the same steps to the same results.");
  const same = steps.filter(step => step.state === "same").length;
  const lines = h("div", { class: "steps differing" }, steps.map((step, i) => stepLine(step, a, b, i === first)));
  const only = button("Only differences", () => {
    only.setAttribute("aria-pressed", lines.classList.toggle("differing"));
  }, { class: "chip", "aria-pressed": true });
  box.replaceChildren(
    h("div", { class: "v4row" }, h("h2", {}, `A ${RUNS[a].id} → B ${RUNS[b].id}`), jump, h("span", { class: "grow" }),
      h("span", { class: "note" }, `${counted(steps.length, "step")}, ${number(same)} the same`), only),
    h("dl", { class: "deltas" }, DELTAS.map(part => delta(part, RUNS[a], RUNS[b]))), lines);
}
function delta([title, key, format], a, b) {
  const by = b[key] - a[key], sign = by > 0 ? "+" : by < 0 ? "−" : "±";
  const known = [a[key], b[key]].every(value => typeof value === "number");
  const told = value => typeof value === "number" ? format(value) : "?";
  return h("div", {}, h("dt", {}, title), h("dd", { class: "d" }, known ? sign + format(Math.abs(by)) : "?"),
    h("dd", {}, `${told(a[key])} → ${told(b[key])}`));
}
// A step as a line that opens into what differs.
function stepLine({ state, one, other }, a, b, first) {
  const side = step => h("span", { class: "side", dir: "auto" }, step ? [h("b", {}, step.name), " ",
    state === "changed" ? differing(step, step === one ? other : one) : step.words] : "—");
  const line = h("details", { class: `step ${state}${first ? " first" : ""}`, id: first ? "divergence" : null },
    h("summary", {}, h("span", { class: "tag " + state }, STEP_WORDS[state]), side(one), side(other)));
  line.addEventListener("toggle", () => {
    if (line.open && line.children.length < 2) line.append(stepDetail({ one, other }, a, b));
  });
  return line;
}
// The first line in which a step differs from the other run's.
function differing(step, from) {
  const part = step.texts.findIndex(([, words], n) => words !== from.texts[n]?.[1]);
  const lines = (step.texts[part]?.[1] || "").split("\n"), others = (from.texts[part]?.[1] || "").split("\n");
  const line = lines.find((words, n) => words !== others[n] && words.trim());
  return line === undefined ? step.words : `${step.texts[part][0].toLowerCase()}: ${line.trim().slice(0, 160)}`;
}
function stepDetail({ one, other }, a, b) {
  const links = [[one, a, "A"], [other, b, "B"]].filter(([step]) => step).map(([step, place, letter]) =>
    button(`Open in ${letter}`, () => pickRun(place, String(step.at)), { class: "link" }));
  const titles = [...new Set([...(one?.texts || []), ...(other?.texts || [])].map(([title]) => title))];
  const of = (step, title) => step?.texts.find(([name]) => name === title)?.[1] ?? "";
  const parts = titles.map(title => [title, of(one, title), of(other, title)]);
  return h("div", { class: "acts" }, h("p", { class: "row" }, links),
    parts.filter(([, x, y]) => x !== y).map(([title, x, y]) => lineDiff(title, x, y)));
}
const CONTEXT = 2;
function lineDiff(title, before, after) {
  const left = before ? before.split("\n") : [], right = after ? after.split("\n") : [], pre = h("pre", { tabindex: 0,
    "aria-label": title });
  const pairs = aligned(left, right), near = new Set();
  pairs.forEach(([x, y], n) => {
    if (x < 0 || y < 0 || left[x] !== right[y]) for (let by = -CONTEXT; by <= CONTEXT; by++) near.add(n + by);
  });
  let skipped = 0;
  const skip = () => {
    if (skipped) pre.append(h("span", { class: "skip" }, `… ${counted(skipped, "equal line")}`));
    skipped = 0;
  };
  pairs.slice(0, 5000).forEach(([x, y], n) => {
    if (!near.has(n)) { skipped++; return; }
    skip();
    if (x >= 0 && y >= 0 && left[x] === right[y]) pre.append(h("span", {}, "  " + left[x]));
    else {
      if (x >= 0) pre.append(h("span", { class: "minus" }, "− " + left[x]));
      if (y >= 0) pre.append(h("span", { class: "plus" }, "+ " + right[y]));
    }
  });
  skip();
  return h("section", { class: "block diff" }, h("header", {}, h("h3", {}, title)), pre);
}
