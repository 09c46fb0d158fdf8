// Which tab is open, and when one is there: Gradio builds a tab when it is first opened.

import { emit } from "./client.js";
import { say } from "./locale.js";
import { forms } from "./page_data.js";

const PATIENCE_MS = 15000;
const built = new Set();
export const formTabs = Object.keys(forms);
const settled = {}; // tab → {built, resolve, reject}: its promise, kept when its scripts are there or cannot be had
for (const tab of formTabs) {
  settled[tab] = {};
  settled[tab].built = new Promise((resolve, reject) => Object.assign(settled[tab], { resolve, reject }));
  settled[tab].built.catch(() => {}); // told by whoever waits
}
let last = formTabs[0];

// The open tab with a form, else the one that was open before.
export const activeTab = () => last;

export function followTabs() {
  const names = document.querySelector("#tabs [role=tablist]");
  new MutationObserver(noticeTab).observe(names, { subtree: true, attributeFilter: ["aria-selected"] });
  noticeTab();
}

export function noticeTab() {
  const open = formTabs.find((tab) => document.getElementById(`${tab}_panel`)?.checkVisibility());
  if (open) last = open;
  emit("tab", { tab: open ?? null });
}

export function tabIsBuilt(tab) {
  built.add(tab);
  settled[tab].resolve();
}

export const isBuilt = (tab) => built.has(tab);

export const tabFailed = (tab) => settled[tab].reject(notLoaded());

export async function whenBuilt(tab) {
  const late = new Promise((_, reject) => setTimeout(() => reject(notLoaded()), PATIENCE_MS));
  await Promise.race([settled[tab].built, late]);
}

const notLoaded = () => new Error(say("problem.not_loaded"));

export async function openTab(tab) {
  document.getElementById(`tab_${tab}-button`)?.click();
  await whenBuilt(tab);
}
