// Which tab is open, and when one is there: Gradio builds a tab when it is first opened.

import { emit } from "./client.js";
import { forms } from "./page_data.js";

const PATIENCE_MS = 15000;
const built = new Set();
const waiting = new Map();
let last = Object.keys(forms)[0];

export const formTabs = Object.keys(forms);

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
  waiting.get(tab)?.();
}

export async function openTab(tab) {
  document.getElementById(`tab_${tab}-button`)?.click();
  if (built.has(tab)) return;
  await new Promise((resolve, reject) => {
    waiting.set(tab, resolve);
    setTimeout(() => reject(new Error(`the tab ${tab} was not built in time`)), PATIENCE_MS);
  });
}
