// --- what was sent to the model: the messages of a node as they stood before one of its turns
// As the runtime keeps them: a reply without the tail it made up; outputs that a compaction replaced by a few words;
// attempts that were left out when the model only repeated itself.
async function sentBefore(row) {
  const log = [], messages = [], state = { messages, stubs: [], restarted: false };
  for (let at = 0; at <= run.at[row]; at++) {
    const i = run.rowAt[at];
    if (i >= 0 && run.node[i] === run.node[row] && (kind(i) === "turn" || kind(i) === "compact")) log.push(at);
  }
  for (const at of log) {
    const event = await body(run, at);
    if (event.event === "compact") compacted(state, event);
    else {
      await hear(state, event);
      if (at !== run.at[row]) state.messages.push(replied(event));
    }
  }
  return state.messages;
}
async function hear(state, event) {
  if (event.system && state.messages.length) state.messages[0] = { role: "system", content: event.system };
  for (const message of Array.isArray(event.prompt) ? event.prompt : []) {
    if (!message || typeof message !== "object") continue;
    const refs = refsOf(message), sources = [];
    for (const ref of refs) sources.push(await body(run, ref.at));
    if (sources[0]?.event === "compact" && state.messages.some(known => known.summary)) continue;
    sent(state, message, refs, sources);
  }
  for (const place of state.stubs) if (state.messages[place]) stub(state.messages[place]);
  Object.assign(state, { stubs: [], restarted: false });
}
function sent(state, message, refs, sources) {
  const reply = message.tool_call_ids && state.messages.at(-1);
  if (reply?.role === "assistant" && !reply.tool_calls) reply.content = reply.content.trimEnd();
  const content = sources.length ? storedText(message, refs, sources) : message.content;
  const { refs: _, ...bare } = message;
  state.messages.push({ ...bare, content, cells: sources.map(source => source.cell).filter(Boolean),
    asked: sources[0]?.event === "start", restart: state.restarted && !sources.length });
}
function replied(event) {
  const whole = show(event.response), kept = event.dropped ? whole.trimEnd().slice(0, -event.dropped) : whole;
  const calls = event.tool_calls?.length ? { tool_calls: event.tool_calls } : {};
  return { role: "assistant", content: kept, ...calls, turn: event.turn, dropped: event.dropped };
}
function stub(message) {
  const kept = message.cells.map(cell => `_out[${cell}]`).join(" and ");
  const where = kept ? `it is in ${kept}` : "call the tool again if you need it";
  message.content = `[${number(contentText(message.content).length)} characters of output stood here; ${where}]`;
}
function compacted(state, event) {
  if (event.restart) leaveOut(state, new Set(event.cells));
  else if (event.summary) {
    const newest = state.messages.slice(2).filter(message => message.asked).slice(-1);
    const summary = { role: "user", content: "[the work so far, summed up]\n" + event.summary, summary: true };
    state.messages.splice(2, Infinity, summary, ...newest);
  } else state.stubs = event.places || [];
}
function leaveOut(state, cells) {
  const { messages } = state, leaves = message => message.cells?.some(cell => cells.has(cell));
  messages.pop(); // the newest reply: what came of it is not among them yet
  while (messages.length > 2 && leaves(messages.at(-1))) messages.splice(-2);
  if (messages.at(-1)?.restart) messages.pop();
  state.restarted = true;
}
// New messages | everything sent, on a turn.
function sentBlocks(row, event, answers) {
  const fresh = (Array.isArray(event.prompt) ? event.prompt : []).flatMap(m => messageBlock(m, answers) || []);
  const box = h("div", { class: "sent" }, fresh);
  if (kind(row) !== "turn") return [box];
  const tokens = event.token_usage?.input ? `, ${number(event.token_usage.input)} tokens` : "";
  const views = [["New messages", () => fresh], ["Everything sent", () => everything(row, event)]];
  const buttons = views.map(([label, made]) => button(label, async () => {
    for (const other of buttons) other.setAttribute("aria-pressed", other === pressed(label));
    box.replaceChildren(...await made());
    markHits(box);
  }, { class: "chip", "aria-pressed": label === "New messages" }));
  const pressed = label => buttons.find(other => other.dataset.label === label);
  buttons.forEach((made, i) => { made.dataset.label = views[i][0]; });
  sentBefore(row).then(messages => buttons[1].append(` (${counted(messages.length, "message")}${tokens})`));
  const copyAll = copyButton("Messages", async () => JSON.stringify((await sentBefore(row)).map(wire), null, 2));
  return [h("div", { class: "choose", role: "group", "aria-label": "Sent to the model" },
    h("h3", {}, "Sent to the model"), buttons, copyAll), box];
}
const wire = ({ cells, asked, restart, summary, turn, dropped, ...message }) => message;
async function everything(row, event) {
  const messages = await sentBefore(row), start = await startOf(row);
  const last = messages.length - (Array.isArray(event.prompt) ? event.prompt.length : 0);
  const sent = messages.map((message, i) => sentMessage(message, i < last));
  return [...sent, offered(start.tool_schemas || start.tools)].filter(Boolean);
}
const ROLES = ["system", "user", "assistant", "tool"];
function sentMessage(message, old) {
  const calls = (message.tool_calls || []).map(call => show(call?.arguments?.code ?? call)).join("\n\n");
  const words = [contentText(message.content), calls].filter(Boolean).join("\n\n");
  const from = message.turn ? ` · turn ${message.turn}` : "";
  const note = message.dropped ? `without ${counted(message.dropped, "character")} that it made up` : null;
  const made = text(`${message.role}${from}`, words || "(empty)", { folded: old, note });
  made.classList.add("role", ROLES.includes(message.role) ? "role-" + message.role : "role-other");
  return made;
}
async function startOf(row) {
  const first = run.rowAt.findIndex(i => i >= 0 && run.node[i] === run.node[row] && kind(i) === "node");
  return first < 0 ? {} : body(run, first);
}
// The schemas that were sent; the names alone where a journal has no more.
function offered(tools) {
  const list = Array.isArray(tools) ? tools.map(show).join("\n") : "";
  return text("Tools offered", list, { folded: true });
}
