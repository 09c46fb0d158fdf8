// PNG Info: a picture is dropped, pasted or chosen; the server reads its parameters; Gradio's box shows them.

import { ask, sentenceOf } from "./client.js";
import { put } from "./fields.js";
import { tellForeign } from "./foreign.js";
import { takeFiles } from "./inputs.js";
import { say } from "./locale.js";
import { report } from "./problems.js";

let dropped = null;

export const droppedPicture = () => dropped;

export function bindDrop() {
  takeFiles(document.getElementById("easel_drop"), ([file]) => read(file));
}

async function read(file) {
  const url = await dataUrl(file);
  const picture = document.getElementById("easel_drop_picture");
  const box = document.querySelector("#pnginfo_generation_info textarea");
  const answer = await ask("sdapi/v1/png-info", { image: url });
  const body = answer?.body;
  tellForeign(answer?.ok ? body : null);
  if (!answer?.ok) {
    dropped = null;
    picture.hidden = true;
    put(box, "");
    report(sentenceOf(body) ?? say("problem.not_read", { status: answer?.status ?? "–" }));
    return;
  }
  dropped = file;
  picture.src = url;
  picture.hidden = false;
  put(box, body.info ?? "");
  if (!body.info) report(say("problem.no_parameters"));
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
