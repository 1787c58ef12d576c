// The dialog that asks how many other answers a prompt should get.

import { h } from "../core/dom.js"
import { kept } from "../core/kept.js"
import { openDialog } from "../widgets/dialog.js"

const CHOICES = [1, 2, 3, 4, 6, 8]

/** @param {(n: number) => void} go */
export function openRetry(go) {
  const last = kept.get("siblings", 3)
  const choose = (n) => {
    kept.set("siblings", n)
    dialog.close()
    go(n)
  }
  const buttons = CHOICES.map((n) =>
    h(
      "button",
      {
        type: "button",
        class: n === last ? "is-chosen" : "",
        on: { click: () => choose(n) },
      },
      String(n),
    ),
  )
  const dialog = openDialog({
    title: "Other answers to the same prompt",
    name: "retry",
    body: [
      h(
        "p",
        {},
        "They share the conversation in memory and are generated at once, side by side.",
      ),
      h("div.choices", { role: "group", "aria-label": "How many" }, buttons),
    ],
  })
  buttons[Math.max(0, CHOICES.indexOf(last))].focus()
  dialog.addEventListener("keydown", (event) => {
    const n = Number(event.key)
    if (CHOICES.includes(n)) choose(n)
    const step = { ArrowRight: 1, ArrowLeft: -1, l: 1, h: -1 }[event.key]
    const at = buttons.indexOf(document.activeElement)
    if (step && at >= 0) buttons[(at + step + buttons.length) % buttons.length].focus()
  })
}
