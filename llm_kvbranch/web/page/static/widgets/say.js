// Short messages about what just happened: shown for a moment, and announced to screen
// readers.

import { h } from "../core/dom.js"

const MS = 3200

/** `say` shows and announces a message, `whisper` only announces it.
 * @returns {{element: HTMLElement, say: (text: string, isProblem?: boolean) => void,
 *   whisper: (text: string) => void}} */
export function sayer() {
  const spoken = h("div.off-screen", { role: "status", "aria-live": "polite" })
  const toast = h("div.toast", { hidden: true, "aria-hidden": "true" })
  let timer = 0
  const whisper = (text) => (spoken.textContent = text)
  const say = (text, isProblem = false) => {
    whisper(text)
    toast.textContent = text
    toast.hidden = false
    toast.classList.toggle("is-problem", isProblem)
    clearTimeout(timer)
    timer = setTimeout(() => (toast.hidden = true), isProblem ? 2 * MS : MS)
  }
  return { element: h("div", {}, spoken, toast), say, whisper }
}
