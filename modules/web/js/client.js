// This tab to the server: who the tab is, its stream of events, and small requests.

const ID = "easel.client";
const listeners = new Map();
const latest = new Map(); // the last event of each type, for scripts that come later
let source = null;
export let online = true;

export const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

export let client = sessionStorage.getItem(ID) ?? randomKey();
sessionStorage.setItem(ID, client);

export function on(type, listener) {
  if (!listeners.has(type)) listeners.set(type, []);
  listeners.get(type).push(listener);
}

export function emit(type, event) {
  for (const listener of listeners.get(type) ?? []) listener(event);
}

export function connect() {
  keepToOneTab();
  listen();
}

function listen() {
  source?.close();
  source = new EventSource(`api/v1/events?client=${encodeURIComponent(client)}`);
  const own = source;
  own.onopen = () => {
    online = true;
    emit("open", {});
  };
  own.onerror = () => {
    online = false;
    emit("offline", {});
    // A refused stream (a restart answers 502 or 503 for a moment) is closed for good by the browser: ask again ourselves.
    if (own.readyState === EventSource.CLOSED) setTimeout(() => own === source && listen(), 2000);
  };
  own.onmessage = (message) => receive(message.data);
  for (const type of ["job", "progress", "preview", "image", "model"]) own.addEventListener(type, (m) => receive(m.data, type));
}

function receive(text, type) {
  const event = JSON.parse(text);
  latest.set(event.type ?? type, event);
  emit(event.type ?? type, event);
}

export const lastOf = (type) => latest.get(type) ?? null;

// A duplicated tab inherits the session storage of the first one. The older tab keeps the id, the copy takes a new one.
function keepToOneTab() {
  const channel = new BroadcastChannel("easel.tabs");
  const mark = randomKey();
  channel.onmessage = ({ data }) => {
    if (data.client !== client || data.mark === mark) return;
    if (data.kind === "here?") channel.postMessage({ kind: "taken", client, mark });
    else {
      client = randomKey();
      sessionStorage.setItem(ID, client);
      emit("renamed", {});
      listen();
    }
  };
  channel.postMessage({ kind: "here?", client, mark });
}

// A small request: {ok, status, body}, or null when no answer came (server away, request given up).
export async function ask(path, body, signal) {
  const headers = { "X-Easel-Client": client };
  const json = { ...headers, "Content-Type": "application/json" };
  const options = body === undefined ? { headers } : { method: "POST", headers: json, body: JSON.stringify(body) };
  try {
    const answer = await fetch(path, { ...options, signal });
    return { ok: answer.ok, status: answer.status, body: await answer.json() };
  } catch {
    return null;
  }
}

// What a refusal says, if it says it in words.
export function sentenceOf(body) {
  const error = body?.error ?? body?.detail;
  return typeof error === "string" ? error : error?.message ?? null;
}
