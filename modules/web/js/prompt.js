// The two prompt boxes: token counters, weights with Ctrl+↑/↓, and the words that a small checkpoint was taught.

import { ask, on } from "./client.js";
import { box, put, type, value } from "./fields.js";
import { language, onLanguage, say, translate } from "./locale.js";
import { checkpointOf } from "./page_data.js";
import { weigh } from "./weigh.js";

const PAUSE_MS = 150;

export function bindPrompts(tab) {
  equip("prompt", tab, `${tab}_token_counter`);
  equip("negative_prompt", tab, `${tab}_negative_token_counter`);
  document.getElementById(`${tab}_clear_prompt`).addEventListener("click", () => replaceAll(box("prompt", tab), ""));
}

function equip(name, tab, id) {
  const area = box(name, tab);
  const block = area.closest(".block");
  const tools = document.createElement("div");
  tools.className = "prompt-tools";
  tools.append(document.getElementById("template-prompt-tools").content.cloneNode(true));
  block.append(tools);
  translate(tools);
  const counter = tools.querySelector(".counter");
  counter.id = id;
  count(area, counter);
  const [surprise, words] = tools.querySelectorAll("button");
  if (name === "prompt") {
    offerWords(words, surprise, tab);
    surprise.addEventListener("click", () => replaceAll(area, anyPrompt(taught(tab), area.value)));
  } else tools.replaceChildren(counter);
}

function count(area, counter) {
  let timer = 0;
  let asking = null;
  const askNow = async () => {
    asking?.abort();
    asking = new AbortController();
    const answer = await ask("api/v1/tokens", { text: area.value }, asking.signal);
    if (!answer?.ok) return;
    const { tokens, room } = answer.body;
    counter.textContent = `${tokens}/${room}`;
    counter.classList.toggle("long", room > 75);
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(askNow, PAUSE_MS);
  };
  area.addEventListener("input", later);
  watchValue(area, later);
  on("model", (event) => event.state === "ready" && area.value && later());
  if (area.value) later();
}

// Gradio sets values without an event; a look once a second is enough for a counter.
function watchValue(area, changed) {
  let last = area.value;
  setInterval(() => {
    if (area.value === last) return;
    last = area.value;
    changed();
  }, 1000);
}

export function weighAtCaret(area, up) {
  const change = weigh(area.value, area.selectionStart, area.selectionEnd, up);
  if (!change) return;
  area.setSelectionRange(change.from, change.to);
  type(area, change.insert);
  area.setSelectionRange(change.start, change.end);
}

function replaceAll(area, text) {
  area.focus();
  area.select();
  if (text) type(area, text);
  else if (!document.execCommand("delete")) put(area, "");
}

function offerWords(button, surprise, tab) {
  const list = document.createElement("div");
  list.className = "word-list";
  list.id = `${tab}_words`;
  list.popover = "manual"; // an "auto" one was sometimes closed by the browser after a choice, on busy machines
  list.setAttribute("role", "listbox");
  document.body.append(list);
  button.addEventListener("click", () => list.togglePopover());
  const isOpen = () => list.matches(":popover-open");
  document.addEventListener("pointerdown", (event) => {
    if (isOpen() && !list.contains(event.target) && !button.contains(event.target)) list.hidePopover();
  });
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape" || !isOpen()) return;
      event.stopPropagation(); // it closes the list, and interrupts nothing
      list.hidePopover();
      button.focus();
    },
    true,
  );
  const known = () => {
    const { words = [], additions = [] } = taught(tab);
    return [...inLanguage(words), ...inLanguage(additions), ...inOthers(words), ...inOthers(additions)];
  };
  const refresh = () => {
    button.hidden = surprise.hidden = !taught(tab).words?.length;
    list.setAttribute("aria-label", say("words_title"));
    button.title = say("words_title");
    surprise.title = say("surprise_title");
  };
  list.addEventListener("beforetoggle", (event) => {
    if (event.newState === "open") list.replaceChildren(...known().map((word) => option(word, tab)));
  });
  list.addEventListener("toggle", (event) => {
    button.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "open") placeBelow(list, button);
  });
  onLanguage(refresh);
  watchValue(box("checkpoint", tab), refresh);
  refresh();
}

// Words and additions of the chosen checkpoint; nothing for those that were taught the world.
const taught = (tab) => checkpointOf(value("checkpoint", tab)) ?? {};
const isOfPage = (word) => /\p{Script=Han}/u.test(word) === (language === "zh");
const inLanguage = (words) => words.filter(isOfPage);
const inOthers = (words) => words.filter((word) => !isOfPage(word));

// A prompt other than the one that is there; every third has an addition, a style or a background.
function anyPrompt({ words, additions }, now) {
  const ofPage = inLanguage(words);
  const others = (ofPage.length ? ofPage : words).filter((word) => word !== now);
  const fitting = inLanguage(additions);
  const word = anyOf(others) ?? words[0];
  return fitting.length && Math.random() < 1 / 3 ? word + (language === "zh" ? "，" : ", ") + anyOf(fitting) : word;
}

const anyOf = (list) => list[Math.floor(Math.random() * list.length)];

function option(word, tab) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = word;
  button.setAttribute("role", "option");
  button.addEventListener("click", () => insertWord(word, tab));
  return button;
}

function insertWord(word, tab) {
  const area = box("prompt", tab);
  const before = area.value.slice(0, area.selectionStart);
  const glue = before.trim() === "" || /[,(]\s*$/.test(before) ? (/,$/.test(before) ? " " : "") : ", ";
  type(area, glue + word);
}

function placeBelow(list, button) {
  const place = button.getBoundingClientRect();
  list.style.top = `${place.bottom + 4}px`;
  list.style.left = `${Math.max(8, Math.min(place.right - list.offsetWidth, innerWidth - list.offsetWidth - 8))}px`;
}
