// PNG Info: a picture is dropped, pasted or chosen; the server reads its parameters; Gradio's box shows them.

import { ask } from "./client.js";
import { put } from "./fields.js";
import { tellForeign } from "./foreign.js";
import { say } from "./locale.js";
import { report } from "./problems.js";

export function bindDrop() {
  const drop = document.getElementById("easel_drop");
  const file = document.getElementById("easel_drop_file");
  file.addEventListener("change", () => file.files[0] && read(file.files[0]));
  for (const type of ["dragenter", "dragover"]) drop.addEventListener(type, (event) => hover(event, true));
  for (const type of ["dragleave", "drop"]) drop.addEventListener(type, (event) => hover(event, false));
  drop.addEventListener("drop", (event) => event.dataTransfer.files[0] && read(event.dataTransfer.files[0]));
  document.addEventListener("paste", (event) => {
    const pasted = event.clipboardData?.files[0];
    if (pasted && drop.checkVisibility()) read(pasted);
  });
}

function hover(event, over) {
  event.preventDefault();
  event.currentTarget.classList.toggle("over", over);
}

async function read(file) {
  const url = await dataUrl(file);
  const picture = document.getElementById("easel_drop_picture");
  const box = document.querySelector("#pnginfo_generation_info textarea");
  const answer = await ask("sdapi/v1/png-info", { image: url });
  const body = answer?.body;
  tellForeign(answer?.ok ? body : null);
  if (!answer?.ok) {
    picture.hidden = true;
    put(box, "");
    report(sentenceOf(body) ?? say("problem.not_read", { status: answer?.status ?? "–" }));
    return;
  }
  picture.src = url;
  picture.hidden = false;
  put(box, body.info ?? "");
  if (!body.info) report(say("problem.no_parameters"));
}

function sentenceOf(body) {
  const error = body?.error ?? body?.detail;
  return typeof error === "string" ? error : error?.message ?? null;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
