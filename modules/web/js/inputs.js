// Pictures that requests start from, on their way to the server: sent as files, named by id from then on.

import { client, sentenceOf } from "./client.js";
import { say } from "./locale.js";

export const addressOf = (id) => `api/v1/inputs/${id}`;

// {id, width, height}; throws an Error whose message is for people.
export async function upload(file) {
  let answer = null;
  try {
    const headers = { "X-Easel-Client": client, "Content-Type": file.type || "application/octet-stream" };
    answer = await fetch("api/v1/inputs", { method: "POST", headers, body: file });
  } catch {
    throw new Error(say("problem.picture_not_sent"));
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(sentenceOf(body) ?? say("problem.not_read", { status: answer.status }));
  return body;
}

// Files that were dropped on an element, pasted while it can be seen, or chosen in its file box.
export function takeFiles(element, taken) {
  const chosen = element.querySelector('input[type="file"]');
  const take = (files) => files.length && taken([...files]);
  chosen?.addEventListener("change", () => {
    take(chosen.files);
    chosen.value = ""; // the same file may be chosen again
  });
  for (const type of ["dragenter", "dragover"]) element.addEventListener(type, (event) => hover(event, true));
  for (const type of ["dragleave", "drop"]) element.addEventListener(type, (event) => hover(event, false));
  element.addEventListener("drop", (event) => take(event.dataTransfer.files));
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length && element.checkVisibility() && !event.defaultPrevented) {
      event.preventDefault();
      take(event.clipboardData.files);
    }
  });
}

function hover(event, over) {
  event.preventDefault();
  event.currentTarget.classList.toggle("over", over);
}
