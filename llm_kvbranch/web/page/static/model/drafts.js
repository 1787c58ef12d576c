// Unsent text, kept for each place where one types while the tab is open.

import { keptInTab } from "../core/kept.js"

/** @param {string} place such as "continue:ID" */
export const draft = (place) => keptInTab.get(`draft:${place}`, "")

/** @param {string} place @param {string} text */
export function keepDraft(place, text) {
  keptInTab.set(`draft:${place}`, text.trim() ? text : null)
}
