// Words on the page. Our own elements carry an id of locales/*.json (data-text: their text, data-name: accessible name and
// tooltip); what Gradio renders is recognised by its English words. Anything inside translate="no" is left alone.

import { texts } from "./page_data.js";

const english = texts.en;
const idOf = new Map(Object.entries(english).map(([id, words]) => [words, id]));
const SKIPPED = '[translate="no"], textarea, script, style, template, .wire, [role="listbox"], [role="option"]';
const ATTRIBUTES = ["placeholder", "aria-label", "title"];
// What the server says, known by its English words. Places like {host} are filled, and may hold such a sentence again.
const SAID = Object.entries(english)
  .filter(([id]) => id.startsWith("said."))
  .map(([id, words]) => [id, new RegExp(`^${words.split(/\{(\w+)\}/).map((part, n) => (n % 2 ? `(?<${part}>.+)` : literal(part))).join("")}$`)]);
const spoken = new Map(); // text node or element+attribute → id, once recognised
const listeners = [];

export let language = localStorage.getItem("easel.language") || (/^zh/.test(navigator.language) ? "zh" : "en");

export function say(id, values = {}) {
  const words = texts[language][id] ?? english[id] ?? id;
  return words.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}

export function has(id) {
  return id in english;
}

// A sentence of the server in the page's language, where it is known.
export function inWords(text) {
  const known = language === "en" ? null : SAID.find(([, pattern]) => pattern.test(text));
  if (!known) return text;
  const filled = Object.entries(known[1].exec(text).groups ?? {}).map(([name, part]) => [name, inWords(part)]);
  return say(known[0], Object.fromEntries(filled));
}

// In a regular expression.
export function literal(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

export function setLanguage(chosen) {
  language = chosen;
  localStorage.setItem("easel.language", chosen);
  keepLanguage();
  translate(document.body);
  for (const listener of listeners) listener();
}

// Gradio writes the browser's language there, whatever was chosen.
function keepLanguage() {
  if (document.documentElement.lang !== language) document.documentElement.lang = language;
}

export function onLanguage(listener) {
  listeners.push(listener);
}

export function startTranslating() {
  translate(document.body);
  keepLanguage();
  new MutationObserver(keepLanguage).observe(document.documentElement, { attributeFilter: ["lang"] });
  new MutationObserver((changes) => {
    for (const change of changes) {
      for (const node of change.addedNodes) translate(node);
      if (change.type === "attributes") translateAttributes(change.target);
    }
  }).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-label", "placeholder"] });
}

export function translate(root) {
  if (root.nodeType === Node.TEXT_NODE) return translateText(root);
  if (root.nodeType !== Node.ELEMENT_NODE) return;
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  for (let node = root; node; node = walker.nextNode()) {
    if (node.nodeType === Node.TEXT_NODE) translateText(node);
    else translateElement(node);
  }
}

function translateText(node) {
  const parent = node.parentElement;
  if (!parent || parent.closest(SKIPPED)) return;
  const known = spoken.get(node) ?? idOf.get(node.data.trim());
  if (!known) return;
  spoken.set(node, known);
  const words = say(known);
  if (node.data.trim() !== words) node.data = node.data.replace(node.data.trim(), () => words);
  const button = parent.closest("button.icon-button");
  if (button) button.title = words;
}

function translateElement(element) {
  const { text, name } = element.dataset;
  if (text && element.textContent !== say(text)) element.textContent = say(text);
  if (name) {
    element.setAttribute("aria-label", say(name));
    if (element.tagName === "BUTTON") element.title = say(name);
  } else {
    translateAttributes(element);
  }
}

const LABELLED = /^(number input for|range slider for) (.+)$/;

function translateAttributes(element) {
  if (element.dataset.name || element.closest('[translate="no"], .wire')) return;
  for (const attribute of ATTRIBUTES) {
    const value = element.getAttribute(attribute);
    if (!value) continue;
    const key = `easel-${attribute}`;
    const id = element[key] ?? idOf.get(value.match(LABELLED)?.[2] ?? value);
    if (!id) continue;
    element[key] = id;
    if (value !== say(id)) element.setAttribute(attribute, say(id));
  }
}
