// --- the address: #run=…&e=…&v=…, the filters and the order
const STATE = { run: 0, e: "", v: 1, q: "", k: "", d: "", m: "", t: "", err: "", cost: "", ms: "", s: "", c: "" };
const FILTERS = ["k", "d", "m", "t", "err", "cost", "ms"];
const VIEW_COUNT = 5;
const isNarrow = () => matchMedia("(max-width:480px)").matches;
function firstView() {
  if (DATA.diff && !STATE.e) return 4;
  return isNarrow() ? 5 : 1;
}
function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(STATE)) if (key !== "run") STATE[key] = asked.get(key) || "";
  STATE.v = Math.min(VIEW_COUNT, Math.max(1, +STATE.v || firstView()));
  const wanted = asked.get("run"), place = wanted ? RUNS.findIndex(meta => meta.id === wanted) : STATE.run;
  say(place < 0 ? `This page has no run “${wanted}”.` : "", "run");
  return Math.max(0, place);
}
function hash() {
  const asked = new URLSearchParams();
  if (RUNS.length) asked.set("run", RUNS[STATE.run].id);
  for (const [key, value] of Object.entries(STATE)) if (key !== "run" && value &&
    !(key === "v" && value === firstView())) asked.set(key, value);
  return "#" + asked;
}
function go(changes, push = true) {
  Object.assign(STATE, changes);
  const target = hash();
  if (target !== location.hash) history[push ? "pushState" : "replaceState"](null, "", target);
}
const NOTICES = { run: "", event: "" };
function say(text, about = "event") {
  NOTICES[about] = text;
  $("notice").replaceChildren();
  put($("notice"), Object.values(NOTICES).filter(Boolean).join(" "));
}
