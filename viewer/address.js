// --- the address: #run=…&e=…&v=… and the filters
function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(STATE)) if (key !== "run") STATE[key] = asked.get(key) || "";
  STATE.v = Math.min(4, Math.max(1, +STATE.v || (DATA.diff && !STATE.e ? 4 : 1)));
  const wanted = asked.get("run"), place = wanted ? RUNS.findIndex(meta => meta.id === wanted) : STATE.run;
  say(place < 0 ? `This page has no run “${wanted}”.` : "");
  return Math.max(0, place);
}
function hash() {
  const asked = new URLSearchParams();
  if (RUNS.length) asked.set("run", RUNS[STATE.run].id);
  for (const [key, value] of Object.entries(STATE)) if (key !== "run" && value &&
    !(key === "v" && value === 1)) asked.set(key, value);
  return "#" + asked;
}
function go(changes, push = true) {
  Object.assign(STATE, changes);
  const target = hash();
  if (target !== location.hash) history[push ? "pushState" : "replaceState"](null, "", target);
}
function say(text) {
  $("notice").replaceChildren();
  put($("notice"), text);
}

