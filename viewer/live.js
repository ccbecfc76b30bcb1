// --- a served page follows its log: rows are added, and nothing that is open closes
const LIVE = { changed: Date.now(), gone: false };
function followLog() {
  $("live").hidden = false;
  setInterval(tellLive, 1000);
  tellLive();
  const poll = async () => {
    const reply = await fetch("version" + location.search).catch(() => null);
    LIVE.gone = !reply?.ok;
    if (reply?.ok && await reply.text() !== DATA.live) await takeOver();
    setTimeout(poll, 2000);
  };
  setTimeout(poll, 2000);
}
function tellLive() {
  const since = Math.round((Date.now() - LIVE.changed) / 1000);
  const ago = since < 60 ? since + " s" : duration(since * 1000);
  $("ago").textContent = LIVE.gone ? "no longer served" : `live, ${ago} ago`;
  $("live").classList.toggle("gone", LIVE.gone);
}
// Put the new page's data in the place of the old; its scripts are not run.
async function takeOver() {
  const reply = await fetch(location.pathname + location.search).catch(() => null);
  if (!reply?.ok) return;
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html"), data = fresh.getElementById("data");
  if (!data) return;
  const next = JSON.parse(data.textContent);
  for (const old of document.querySelectorAll('script[id^="r"]')) old.remove();
  for (const made of fresh.querySelectorAll('script[id^="r"]')) {
    document.body.append(h("script", { type: made.type, id: made.id }));
    $(made.id).textContent = made.textContent;
  }
  DATA.live = next.live;
  RUNS.splice(0, RUNS.length, ...next.runs);
  OPENED.clear();
  LIVE.changed = Date.now();
  await refresh();
  tellLive();
}
async function refresh() {
  const old = run, kept = old && keptState(old);
  run = await openedRun(STATE.run);
  openAtFirst();
  if (old) restore(old, kept);
  showSummary();
  showPicker();
  applyFilters();
  showFilters();
  showRows();
  if (STATE.v === 5 && $("script")) growTranscript(kept);
  else if (VIEWS[STATE.v]) VIEWS[STATE.v]();
  if (STATE.q) search();
  const last = run.rowAt[run.meta.events - 1], reveal = STATE.v === 1;
  if ($("follow").checked && run.count) select(last, { reveal, inspect: true });
  else if (rowOf(STATE.e) >= 0 && kept && kept.size !== run.size[rowOf(STATE.e)]) showEvent(rowOf(STATE.e), true);
  else if (rowOf(STATE.e) < 0 && run.count) showEvent(0, true);
}
function keptState(old) {
  const rows = new Map();
  for (let i = 0; i < old.count; i++) if (old.size[i] > 1) rows.set(rowId(i), old.open[i]);
  const chosen = rowOf(STATE.e);
  return { rows, size: chosen < 0 ? 0 : old.size[chosen], sections: $("script") ? allSections() : [],
    ids: $("script") ? allSections().map(section => rowId(section.row)) : [] };
}
function restore(old, kept) {
  for (let i = 0; i < run.count; i++) if (kept.rows.has(rowId(i))) run.open[i] = kept.rows.get(rowId(i));
}
// The sections that there are stay as they are; those in which something happened are filled again.
function growTranscript(kept) {
  const box = $("script"), known = new Map(kept.ids.map((id, n) => [id, kept.sections[n]]));
  SCRIPT.run = run;
  SCRIPT.node = rowOf(STATE.e) >= 0 ? nodeOf(rowOf(STATE.e)) : rowsOf("node")[0] ?? -1;
  for (const made of sections(SCRIPT.node, null)) {
    const old = known.get(rowId(made.row));
    if (!old) { box.append(made); SCRIPT.watcher.observe(made); continue; }
    const grown = old.size !== made.size;
    Object.assign(old, { row: made.row, size: made.size });
    if (grown && old.filled) fillSection(old);
  }
  $("v5").firstElementChild.replaceWith(outlineOf(SCRIPT.node));
}
