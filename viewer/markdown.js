// --- Markdown as elements, made of text nodes alone; what is not understood stays as it is written
const MARKED = /\*\*\S|`[^`\n]|^\s{0,6}(?:[-*+•]|\d{1,3}[.)])\s+\S|^#{1,6}\s|^\s*\|.*\|\s*$/m;
function markdown(source) {
  const box = h("div", { class: "md" }), lines = source.split("\n");
  for (let at = 0; at < lines.length;) {
    const block = [mdFence, mdHeading, mdRule, mdTable, mdList, mdQuote, mdParagraph].find(make => make.at(lines, at));
    const [element, next] = block(lines, at);
    if (element) box.append(element);
    at = next;
  }
  return auto(box);
}
// The direction of its text; given at last, since each child that is added makes a browser work it out anew.
function auto(element) {
  element.dir = "auto";
  return element;
}
function spanned(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end])) end++;
  return end;
}
const FENCE = /^\s{0,9}(`{3,}|~{3,})\s*([\w+-]*)/, ITEM = /^(\s{0,40})(?:[-*+•]|(\d{1,9})[.)])\s+(\S.*)$/;
const RULED = /^\s*\|?\s*:?-{1,99}:?\s*(?:\|\s*:?-{1,99}:?\s*){0,99}\|?\s*$/;
const isTable = (lines, at) => lines[at].includes("|") && /\|/.test(lines[at + 1] || "") && RULED.test(lines[at + 1]);
function mdFence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]);
  const end = spanned(lines, at, line => !line.trim().startsWith(mark));
  const pre = h("pre", { tabindex: 0, "aria-label": "Code" });
  fillText(pre, lines.slice(at + 1, end).join("\n"), /^(py|python|repl)\w*$/.test(language) ? "python" : "", 0);
  return [pre, end + 1];
}
mdFence.at = (lines, at) => FENCE.test(lines[at]);
const mdHeading = (lines, at) =>
  [inline(h("p", { class: "mdh" }), lines[at].replace(/^#{1,6}\s+/, "").replace(/\s+#+$/, "")), at + 1];
mdHeading.at = (lines, at) => /^#{1,6}\s+\S/.test(lines[at]);
const mdRule = (lines, at) => [h("hr"), at + 1];
mdRule.at = (lines, at) => /^\s{0,3}(?:-\s*){3,99}$|^\s{0,3}(?:\*\s*){3,99}$/.test(lines[at]);
function mdTable(lines, at) {
  const end = spanned(lines, at + 1, line => line.includes("|"));
  const cells = line => line.trim().replace(/^\||\|$/g, "").split("|").map(cell => cell.trim());
  const made = (line, tag) => h("tr", {}, cells(line).map(cell => auto(inline(h(tag), cell))));
  const rows = lines.slice(at + 2, end).map(line => made(line, "td"));
  const table = h("table", {}, h("thead", {}, made(lines[at], "th")), h("tbody", {}, rows));
  return [h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, table), end];
}
mdTable.at = isTable;
function mdList(lines, at) {
  const end = spanned(lines, at, line => ITEM.test(line) || /^\s+\S/.test(line)), open = [];
  let last = null;
  for (const line of lines.slice(at, end)) {
    const [, space, count, words] = ITEM.exec(line) || [];
    if (words === undefined) { inline(last, "\n" + line.trim()); continue; }
    while (open.length > 1 && open.at(-1).deep > space.length) open.pop();
    if (!open.length || (open.at(-1).deep < space.length && open.length < 8)) {
      const list = count ? h("ol", { start: count }) : h("ul");
      if (open.length) last.append(list);
      else open.root ??= list;
      open.push({ deep: space.length, list });
    }
    open.at(-1).list.append(last = auto(inline(h("li"), words)));
  }
  return [auto(open.root), end];
}
mdList.at = (lines, at) => ITEM.test(lines[at]);
function mdQuote(lines, at) {
  const end = spanned(lines, at, line => /^\s*>/.test(line));
  return [inline(h("blockquote"), lines.slice(at, end).map(line => line.replace(/^\s*>\s?/, "")).join("\n")), end];
}
mdQuote.at = (lines, at) => /^\s{0,3}>/.test(lines[at]);
function mdParagraph(lines, at) {
  const starts = next => [mdFence, mdHeading, mdRule, mdTable, mdList, mdQuote].some(make => make.at(lines, next));
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !starts(end)) end++;
  const words = lines.slice(at, end).join("\n");
  return [words.trim() ? auto(inline(h("p"), words)) : null, end];
}
mdParagraph.at = () => true;
const INLINE = new RegExp([
  /(`{1,3})(?!`)([^\n]{1,400}?)(?<!`)\1(?!`)/,
  /\*\*(?=\S)([^]{1,400}?\S?)\*\*/,
  /(?<![\w*])\*(?=[^\s*])([^*\n]{1,200})(?<!\s)\*(?![\w*])/,
  /(?<!\w)_(?=[^\s_])([^_\n]{1,200})(?<!\s)_(?!\w)/,
].map(part => part.source).join("|"), "g");
function inline(box, words) {
  const parts = document.createDocumentFragment();
  let last = 0;
  INLINE.lastIndex = 0;
  for (let found = INLINE.exec(words); found; found = INLINE.exec(words)) {
    put(parts, words.slice(last, found.index));
    const [whole, , code, bold, star, line] = found;
    if (code !== undefined) parts.append(h("code", {}, code));
    else parts.append(inline(h(bold === undefined ? "em" : "strong"), bold ?? star ?? line));
    INLINE.lastIndex = last = found.index + whole.length; // what is within has moved it
  }
  box.append(put(parts, words.slice(last)));
  return box;
}
// Text as Markdown, with a button that shows it as it was written.
function readable(content, made) {
  const raw = () => put(h("div", { class: "prose", dir: "auto" }), content);
  const box = h("div", { class: "readable" }, MARKED.test(content) ? markdown(content) : raw());
  made?.(box);
  if (!MARKED.test(content)) return [box, null];
  const toggle = button("Raw", () => {
    const pressed = toggle.getAttribute("aria-pressed") === "true";
    toggle.setAttribute("aria-pressed", !pressed);
    box.replaceChildren(pressed ? markdown(content) : raw());
    made?.(box);
  }, { class: "raw", "aria-pressed": false });
  return [box, toggle];
}
