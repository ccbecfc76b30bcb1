// --- the inspector
let shown = 0;
async function showEvent(row, stay = false) {
  const ticket = ++shown, box = $("inspector"), top = stay ? box.scrollTop : 0;
  const event = run.at[row] >= 0 ? await body(run, run.at[row]) : null;
  const answers = event ? await elsewhere(row, event) : new Map();
  if (ticket !== shown) return;
  box.replaceChildren(inspectorTitle(row, event), pathTo(row), facts(row, event || {}),
    h("div", { class: "blocks" }, ...blocks(row, event, answers)));
  markHits(box);
  box.scrollTop = top;
  if (STATE.q && !stay) landOnHit();
}
function showNothing() {
  shown++;
  $("inspector").replaceChildren(h("p", { class: "empty" },
    "Nothing has happened yet."));
}
function inspectorTitle(row, event) {
  const close = button("×", () => { document.body.classList.remove("open"); focusRow(row); },
    { class: "icon close", "aria-label": "Close" });
  const link = button("", () => copy(location.href, link),
    { class: "icon", "aria-label": "Copy link", "data-shortcut": "l" });
  link.append(icon("link"));
  return h("div", { class: "title" }, icon(markOf(row)), h("h2", {}, name(row)),
    tags(row), h("span", { class: "grow" }), link,
    event ? copyButton("JSON", () => JSON.stringify(event, null, 2)) : null, close);
}
function pathTo(row) {
  const path = pathOf(row);
  return h("nav", { class: "path", "aria-label": "Ancestors" },
    path.map(i => [button(name(i), () => select(i, { push: true, reveal: true }), { class: "link" }),
    h("span", { "aria-hidden": "true" }, "›")]), path.length ? h("span", {}, name(row)) : null);
}
const PLAIN_FACTS = ["status", "stop_reason", "attempts", "environment", "protocol", "backend", "sub_model", "depth"];
function facts(row, event) {
  const usage = event.token_usage || {}, words = key => key.replace("_usd", "").replace("_", " ");
  const list = [
    ["Model", run.models[run.model[row]]],
    ["Tokens", run.allTokens[row] ? number(run.allTokens[row]) + (usage.estimated ? " (estimate)" : "") : ""],
    ...USAGE.map(key => [words(key), usage[key] ? number(usage[key]) : ""]),
    ["Cost", run.allTokens[row] || run.unpriced[row] ? money(run.allCost[row], run.unpriced[row]) : ""],
    ["Time", run.all[row] ? duration(run.all[row]) : ""],
    ["Self", run.all[row] && run.own[row] !== run.all[row] ? duration(run.own[row]) : ""],
    ["Began", "+" + duration(run.start[row])],
    ...PLAIN_FACTS.map(key => [words(key), typeof event[key] === "object" ? "" : event[key]]),
    ["Images", imageCount(event) || ""], ["Dropped characters", event.dropped || ""],
    ...Object.entries(event.left || {}).map(([key, left]) => [words(key) + " left", leftOf(key, left)]),
  ];
  const told = list.filter(([, value]) => value !== "" && value !== undefined);
  const pairs = told.map(([title, value]) => h("div", {}, h("dt", {}, title), h("dd", {}, value)));
  return h("dl", { class: "facts" }, pairs);
}
function leftOf(key, left) {
  if (typeof left !== "number") return left === null ? "" : show(left);
  return key === "cost_usd" ? money(left) : number(left);
}
async function elsewhere(row, event) {
  const found = new Map(), wanted = Array.isArray(event.prompt)
    ? event.prompt.flatMap(message => refsOf(message).map(ref => ref.at)) : [];
  if (kind(row) === "tool" && run.parent[row] >= 0) wanted.push(run.at[run.parent[row]]);
  for (const at of wanted) if (at >= 0) found.set(at, await body(run, at));
  return found;
}
function blocks(row, event, answers) {
  if (!event) return [spawned(row, "Calls")];
  const made = { node: nodeBlocks, turn: callBlocks, sub: callBlocks, cell: cellBlocks, tool: toolBlocks }[kind(row)];
  const list = made ? made(row, event, answers)
    : [event.error ? errorBlock(event.error) : null, text("Response", event.response), text("Value", event.value),
    text("Summary", event.summary)];
  list.push(text("Event", JSON.stringify(event, null, 2), { folded: true, code: "json", repeats: true }));
  return list.filter(Boolean);
}
function nodeBlocks(row, event) {
  return [text("Prompt", event.prompt), context(event.context), spawned(row, "Steps"),
    fields("Limits", event.limits), fields("Tools", event.tools),
    text("System prompt", event.system, { folded: true })];
}
function callBlocks(row, event, answers) {
  const prompt = Array.isArray(event.prompt) ? sentBlocks(row, event, answers) : [text("Prompt", event.prompt)];
  const calls = (event.tool_calls || []).map(call => callBlock(call));
  return [text("Response", event.response, { readable: true }), ...calls, spawned(row, "What it ran"), ...prompt,
    event.raw ? text("Raw", JSON.stringify(event.raw, null, 2), { folded: true, code: "json" }) : null];
}
function callBlock(call) {
  if (!call || typeof call !== "object") return text("Tool call", show(call));
  const code = call.arguments && call.arguments.code;
  return typeof code === "string" ? text("Code to run", code, { code: "python", note: call.id })
    : text("Call " + call.name, show(call.arguments), { code: "json", note: call.id });
}
function messageBlock(message, answers) {
  if (!message || typeof message !== "object") return text("Message", show(message));
  const role = String(message.role), refs = refsOf(message).filter(ref => answers.has(ref.at));
  if (role === "assistant") return null;
  const content = refs.length ? storedText(message, refs, refs.map(ref => answers.get(ref.at))) : message.content;
  const note = refs.length ? refs.map(({ at }) => eventLink("stored in event " + at, at)) : null;
  const images = Array.isArray(content) ? content.map(picture).filter(Boolean) : [];
  return [text(`Prompt · ${role}`, contentText(content), { folded: role !== "user", note }), ...images];
}
// The lines that a message names, each with the number of its event: that of the line, unless lines are missing.
function refsOf(message) {
  const refs = Array.isArray(message?.refs) ? message.refs : [];
  return refs.map(ref => ({ heading: ref?.heading, at: run.eventAt ? run.eventAt.get(ref?.index) : ref?.index }))
    .filter(({ at }) => Number.isInteger(at) && at >= 0 && at < run.rowAt.length);
}
function storedText(message, refs, sources) {
  const texts = sources.map((source, i) => {
    const content = storedIn(source, message);
    return refs[i].heading ? `${refs[i].heading}\n${contentText(content)}` : content;
  });
  return texts.length > 1 ? texts.map(contentText).join("\n\n") : texts[0];
}
function storedIn(source, message) {
  if (source.event === "compact") return source.summary;
  if (source.event !== "tool") {
    const asked = [source.prompt, source.announcement].filter(Boolean);
    return message.role === "system" ? source.system : asked.join("\n\n");
  }
  const results = (source.tool_results || []).filter(Boolean);
  return (results.find(item => item.id === message.tool_call_id) || results[0])?.content ?? cellText(source);
}
// What the model was shown of a cell, as the Python side's `cell_text` puts it.
function cellText(cell) {
  const parts = [cell.stdout ?? "", cell.value ?? "", cell.brief || tracebackOf(cell)].map(show);
  parts[0] = parts[0].replace(/\n+$/, "");
  if (imageCount(cell)) parts.push(`[images made: ${imageCount(cell)}]`);
  return (parts.filter(Boolean).join("\n") || "[no output]") + (cell.note ? "\n" + show(cell.note) : "");
}
const tracebackOf = event => event.traceback || errorText(event.error);
const imageCount = event => Array.isArray(event.images) ? event.images.length : event.images || 0;
const contentText = content => content === null ? "" : Array.isArray(content)
  ? content.map(part => part && part.type === "text" ? part.text
  : `[${show(part && part.type)}] ${part && part.url || ""}`).join("\n") : show(content);
function picture(part) {
  if (part?.type !== "image" || !/^image\/(png|jpeg|gif|webp)$/.test(part.media_type) ||
    !/^[\w+/=\s]+$/.test(part.data)) return null;
  return h("div", { class: "block" }, h("img",
    { alt: "image in the prompt", src: `data:${part.media_type};base64,${part.data}` }));
}
// The images that a cell made, those that the journal has kept.
function madeImages(event) {
  const kept = Array.isArray(event.images) ? event.images.filter(uri =>
    /^data:image\/(png|jpeg|gif|webp);base64,[\w+/=\s]+$/.test(uri)) : [];
  const note = imageCount(event) ? h("p", { class: "note" }, counted(imageCount(event), "image") + " made") : null;
  return [note, ...kept.map(src => h("div", { class: "block" }, h("img", { alt: "image that the cell made", src })))];
}
function cellBlocks(row, event) {
  const trouble = event.error ? errorBlock(tracebackOf(event)) : null,
    at = /line (\d+), in <module>/.exec(show(event.traceback || ""));
  const output = event.stdout || event.value
    ? [text("Output", event.stdout), text("Value", event.value, { code: "python" })]
    : [trouble ? null : h("p", { class: "note" }, "No output.")];
  return [h("div", { class: "pair" }, text("Code", event.code, { code: "python", at: at ? +at[1] : 0 }),
    h("div", { class: "results" }, output.filter(Boolean), trouble)),
    ...madeImages(event),
    "final" in event ? text("FINAL", show(event.final)) : null, spawned(row, "What it called")];
}
function toolBlocks(row, event, answers) {
  const asked = (answers.get(run.at[run.parent[row]])?.tool_calls || []).find(call => call &&
    call.id === event.tool_calls?.[0]);
  const results = (event.tool_results || []).map(result => result &&
    text("Result" + (result.is_error ? " (error)" : ""), contentText(result.content), { error: result.is_error }));
  const sent = event.arguments ?? asked?.arguments;
  return [sent === undefined ? null : text("Arguments", show(sent), { code: "json" }), ...results,
    spawned(row, "Below")];
}
function errorBlock(error) {
  if (typeof error !== "object") return text("Error", show(error), { error: true });
  return text("Error", [error.type, error.message].filter(Boolean).map(show).join(": ") + (error.hint
    ? "\nnext: " + show(error.hint) : ""), { error: true });
}
const show = value => typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value, null, 2);
const context = value => value && typeof value === "object"
  ? text("Context", [["type", value.type], ["size", value.size], ["bytes", value.bytes], ["source", value.source],
  ["sha256", value.sha256]].filter(pair => pair[1] !== undefined &&
  pair[1] !== null).map(([key, item]) =>
  `${key.padEnd(7)} ${typeof item === "number" ? number(item) : show(item)}`).join("\n") + (value.preview
  ? "\n\n" + show(value.preview) : "")) : null;
const fields = (title, value) => value && typeof value === "object"
  ? text(title, Array.isArray(value) ? value.map(show).join("\n")
  : Object.entries(value).map(([key, item]) => `${key.padEnd(18)} ${show(item)}`).join("\n"), { folded: true })
  : null;
function spawned(row, title) {
  const below = childrenOf(row);
  if (!below.length) return null;
  let how = "";
  if (run.width[row] > 1) how = `${below.length} · up to ${run.width[row]} at once`;
  else if (below.length > 1) how = `${below.length} · sequential`;
  const more = below.length - 200;
  const rest = more > 0 ? h("p", { class: "empty" }, `… and ${number(more)} more in the tree`) : null;
  return h("section", { class: "block" },
    h("header", {}, h("h3", {}, title), h("span", { class: "note" }, how)),
    h("div", { class: "spawn" }, below.slice(0, 200).map(spawnedLine)), rest);
}
function spawnedLine(i) {
  const line = button("", () => select(i, { push: true, reveal: true }));
  const cost = isPaid(i) ? money(run.allCost[i], run.unpriced[i]) : "";
  line.append(
    icon(markOf(i)),
    h("span", { class: "said", dir: "auto" }, h("b", {}, name(i)), " ", tags(i), " ",
      h("i", {}, [run.texts[i], run.outcomes[i]].filter(Boolean).join(" → "))),
    h("i", {}, cost), h("span", {}, duration(run.all[i])));
  return line;
}

