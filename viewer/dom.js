"use strict";
const $ = id => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const RUNS = DATA.runs;
const { kinds: KINDS, untimed: UNTIMED, usage: USAGE, chunk: CHUNK, staticRows: STATIC_ROWS, tie: TIE } = DATA;
const [ERROR, WARNING, RESTORED, FINAL, ESTIMATED, RETRIED] = DATA.flags;
const kindName = k => ({ sub: "sub-call", compact: "compaction" })[k] || k;
const PLAIN_ROWS = 5000, FIRST_ROWS = 120, SHOWN_LINES = 40, SHOWN_CHARS = 8000;
let run = null;

// --- elements and text
// What would move, hide or reorder text is shown by its code. A joiner within an emoji, or between letters of a script
// that needs it, is part of the text.
const UNSEEN = new RegExp(
  "([\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff]" +
  "|(?<![\\p{Extended_Pictographic}\\p{Emoji_Modifier}\\p{M}\\u0600-\\u06ff\\u0900-\\u0dff])[\\u200c\\u200d])", "u");

function put(element, text) {
  if (!UNSEEN.test(text)) { element.append(text); return element; }
  text.split(UNSEEN).forEach((part, i) => {
    if (i % 2) element.append(control(part));
    else if (part) element.append(part);
  });
  return element;
}
function control(letter) {
  const mark = document.createElement("span");
  mark.className = "ctl";
  mark.dataset.u = "U+" + letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
  mark.textContent = letter;
  return mark;
}
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && (value !== false || name.startsWith("aria-"))) element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined) put(element, String(child));
  }
  return element;
}
function s(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const icon = name => s("svg", { "aria-hidden": "true", class: "k-" + name }, s("use", { href: "#i-" + name }));
const button = (label, act, attributes) => h("button", { type: "button", ...attributes, onclick: act }, label);
const firstLine = text => text.split("\n", 1)[0];
