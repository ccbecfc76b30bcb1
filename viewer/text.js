// --- a block of text: whole, or its beginning with a button for the rest
function text(title, value, options = {}) {
  if (value === undefined || value === null || value === "") return null;
  const { code = "", error = false, folded = false, note = null, at = 0 } = options;
  const whole = show(value), look = { class: code === "python" ? "src" : "" };
  const [part, count] = beginning(whole, folded, options.repeats);
  const pre = h("pre", { tabindex: 0, "aria-label": title, dir: code ? null : "auto", ...look });
  const [shown, raw] = options.readable && MARKED.test(part) ? readable(part) : [pre, null];
  const head = [h("h3", {}, title), h("span", { class: "note" }, note ?? count), raw, copyButton("Copy", () => whole)];
  const box = h("section", { class: "block" + (error ? " error" : "") }, h("header", {}, head), shown);
  pre.hidden = !part;
  fillText(pre, part, code, at);
  if (part.length < whole.length) {
    box.append(showMore(`Show ${folded ? "" : "all "}${count}`, () => {
      pre.hidden = false;
      fillText(pre, whole, code, at);
      shown.replaceWith(raw ? readable(whole)[0] : pre);
    }));
  }
  return box;
}
// As much of a text as is shown at first, and how much there is, in words. What the search looks for is shown, unless
// the text only repeats what stands above it.
function beginning(whole, folded, repeats) {
  const lines = whole.split("\n");
  const count = lines.length > 1 ? `${number(lines.length)} lines` : `${number(whole.length)} characters`;
  if (!repeats && hits(whole)) return [whole, count];
  return [folded ? "" : lines.slice(0, SHOWN_LINES).join("\n").slice(0, SHOWN_CHARS), count];
}
const hits = whole => STATE.q !== "" && whole.length < 500000 && matcher(STATE.q).test(whole);
function showMore(label, act) {
  const more = button(label, () => {
    act();
    markHits(more.parentNode);
    more.remove();
  }, { class: "more" });
  return more;
}
function fillText(pre, content, code, at) {
  pre.replaceChildren();
  if (!code || content.length > 200000) { pre.classList.remove("src"); put(pre, content); return; }
  let line = h("span", {});
  const lines = [line];
  for (const [look, words] of tokens(content, code)) {
    words.split("\n").forEach((piece, i) => {
      if (i) lines.push(line = h("span", {}));
      if (piece) line.append(look ? h("span", { class: look }, piece)
        : put(document.createDocumentFragment(), piece));
    });
  }
  if (code === "python") pre.append(...lines.flatMap((item, i) => i ? ["", item] : [item]));
  else pre.append(...lines.flatMap((item, i) => i ? ["\n", item] : [item]));
  if (at && lines[at - 1]) lines[at - 1].className = "at";
}
const PYTHON = new RegExp(
  [
    /(#[^\n]*)/,
    /((?:\b[rbfuRBFU]{1,2})?(?:"{3}[^]*?(?:"{3}|$)|'{3}[^]*?(?:'{3}|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))/,
    /\b(llm_query(?:_batched)?|rlm_query(?:_batched)?|FINAL(?:_VAR)?|SHOW_VARS|budget|context)\b/,
    /\b(and|as|assert|async|await|break|case|class|continue|def|del|elif|else|except|False|finally|for|from|global)\b/,
    /\b(if|import|in|is|lambda|match|None|nonlocal|not|or|pass|raise|return|True|try|while|with|yield)\b/,
    /\b(\d[\w.]*)/,
    /\b([A-Za-z_]\w*)(?=\()/,
  ].map(part => part.source).join("|"), "g");
const JSON_TOKENS = /("(?:\\.|[^"\\])*")(?=\s*:)|("(?:\\.|[^"\\])*")|\b(true|false|null)\b|(-?\b\d[\d.eE+-]*)/g;
function* tokens(content, code) {
  const looks = code === "python" ? ["com", "str", "rlm", "kw", "kw", "num", "fn"] : ["fn", "str", "kw", "num"];
  let last = 0;
  for (const found of content.matchAll(code === "python" ? PYTHON : JSON_TOKENS)) {
    if (found.index > last) yield ["", content.slice(last, found.index)];
    yield [looks[found.slice(1).findIndex(group => group !== undefined)], found[0]];
    last = found.index + found[0].length;
  }
  if (last < content.length) yield ["", content.slice(last)];
}
function copyButton(label, content) {
  const act = async () => copy(await content(), made);
  const made = button("", act, { "aria-label": label === "Copy" ? null : "Copy " + label });
  made.append(icon("copy"), label);
  return made;
}
async function copy(content, from) {
  try { await navigator.clipboard.writeText(content); }
  catch {
    const field = h("textarea", { class: "vh" });
    field.value = content;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const old = [...from.childNodes];
  from.replaceChildren("✓");
  setTimeout(() => from.replaceChildren(...old), 1200);
}

