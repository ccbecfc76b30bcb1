// --- filters
function showFilters() {
  const distinct = column => [...new Set(column)];
  const used = distinct(run.kind).map(place => KINDS[place]);
  const models = distinct(run.model).filter(place => run.models[place]).map(place => run.models[place]);
  const tools = new Set(), depths = distinct(run.depth).sort((a, b) => a - b);
  for (let i = 0; i < run.count; i++) {
    if (kind(i) === "tool") tools.add(name(i));
    else if (kind(i) === "cell") tools.add("execute_code");
  }
  const chips = used.map(k => chip(k));
  const errors = button("Errors only", () => filter({ err: STATE.err ? "" : "1" }),
    { class: "chip", "aria-pressed": !!STATE.err });
  errors.prepend(icon("interrupted"));
  $("filters").querySelector(".sheet").replaceChildren(
    h("div", { class: "chips" }, chips, errors),
    choice("Depth", "d", depths), choice("Model", "m", models), choice("Tool", "t", [...tools]),
    amount("Own cost ≥ ($)", "cost", 0.001), amount("Own time ≥ (ms)", "ms", 1), orderChoice(),
    button("Clear filters", () => filter(Object.fromEntries(FILTERS.map(key => [key, ""])))));
}
function chip(k) {
  const chosen = new Set(STATE.k.split(",").filter(Boolean));
  const made = button(kindName(k), () => {
    if (!chosen.delete(k)) chosen.add(k);
    filter({ k: [...chosen].join(",") });
  }, { class: "chip", "aria-pressed": chosen.has(k) });
  made.prepend(icon(k));
  return made;
}
function choice(label, key, values) {
  const list = h("select", { onchange: event => filter({ [key]: event.target.value }) },
    h("option", { value: "" }, "any"), values.map(value => h("option", { value }, value)));
  list.value = STATE[key];
  return h("label", {}, label, list);
}
function orderChoice() {
  const list = h("select", { onchange: event => { go({ s: event.target.value }, false); showRows(); showOrder(); } },
    h("option", { value: "" }, "as a tree"), Object.keys(ORDERS).flatMap(column => [
      h("option", { value: column }, "most " + column), h("option", { value: "-" + column }, "least " + column)]));
  list.value = STATE.s;
  return h("label", {}, "Order", list);
}
function amount(label, key, step) {
  const onchange = event => filter({ [key]: event.target.value });
  return h("label", {}, label, h("input", { type: "number", min: 0, step, value: STATE[key], onchange }));
}
function filter(changes) {
  const at = document.activeElement?.textContent;
  go(changes, false);
  applyFilters();
  showFilters();
  showRows();
  for (const made of $("filters").querySelectorAll("button")) if (made.textContent === at) made.focus();
}

