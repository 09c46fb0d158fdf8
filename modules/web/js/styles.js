// Styles: the dialog where they are written, changed and deleted. The server keeps them; each answer brings all of them.

import { box, put, value } from "./fields.js";
import { report, sentence } from "./problems.js";
import { activeTab } from "./tabs.js";

const $ = (id) => document.getElementById(id);
let styles = [];
let asked = 0; // each wish has a number,
let answered = 0; // for answers may overtake each other
let shown = ""; // the texts that the dialog wrote: others are somebody's own

export function bindStyles() {
  const answer = $("styles_answer");
  new MutationObserver(() => answer.textContent.trim() && read(JSON.parse(answer.textContent))).observe(answer, {
    childList: true,
    characterData: true,
    subtree: true,
  });
  $("txt2img_styles_edit_select").addEventListener("input", show);
  $("txt2img_style_copy").onclick = () => {
    put($("txt2img_edit_style_prompt"), value("prompt"));
    put($("txt2img_edit_style_neg_prompt"), value("negative_prompt"));
  };
  $("txt2img_edit_style_save").onclick = () => ask("save");
  $("txt2img_edit_style_delete").onclick = () => ask("delete");
  $("txt2img_edit_style_close").onclick = () => $("easel_styles").close();
  $("easel_styles").addEventListener("click", (event) => event.target === event.currentTarget && event.currentTarget.close());
  $("easel_styles").addEventListener("close", () => box("prompt")?.focus());
}

export function bindStylesButton(tab) {
  $(`${tab}_styles_edit_button`).addEventListener("click", () => {
    const [first] = value("styles", activeTab());
    $("txt2img_styles_edit_select").value = first ?? "";
    shown = texts();
    ask("list");
    $("easel_styles").showModal();
  });
}

function ask(wish) {
  const told = {
    do: wish,
    number: ++asked,
    name: $("txt2img_styles_edit_select").value.trim(),
    prompt: $("txt2img_edit_style_prompt").value,
    negative_prompt: $("txt2img_edit_style_neg_prompt").value,
  };
  put(document.querySelector("#styles_wish textarea"), JSON.stringify(told));
  $("styles_go").click();
}

function read(answer) {
  for (const problem of answer.problems) report(sentence(problem));
  if (answer.number < answered) return;
  answered = answer.number;
  styles = answer.styles;
  $("easel_style_names").replaceChildren(...styles.map(({ name }) => Object.assign(document.createElement("option"), { value: name })));
  if (texts() === shown) show();
  else known();
}

// The style of that name, if there is one.
function known() {
  const found = styles.find(({ name }) => name === $("txt2img_styles_edit_select").value.trim());
  $("txt2img_edit_style_delete").disabled = !found;
  return found;
}

function show() {
  const found = known();
  if (!found) return;
  $("txt2img_edit_style_prompt").value = found.prompt;
  $("txt2img_edit_style_neg_prompt").value = found.negative_prompt;
  shown = texts();
}

const texts = () => JSON.stringify([$("txt2img_edit_style_prompt").value, $("txt2img_edit_style_neg_prompt").value]);
