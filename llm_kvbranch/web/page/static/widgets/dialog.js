// A modal dialog; Escape, the close button or a click outside closes it.

import { h } from "../core/dom.js"
import { icon } from "./icons.js"

/** Open a dialog, closing any other. @param {{title: string, name: string, body: Array, foot?: Array,
 *   closed?: () => void, isTitled?: boolean}} about
 * @returns {HTMLDialogElement} */
export function openDialog({ title, name, body, foot = [], closed, isTitled = true }) {
  for (const other of document.querySelectorAll("dialog[open]")) other.close()
  const close = h(
    "button.quiet",
    { type: "button", "aria-label": "Close", title: "Close (Esc)" },
    icon("close"),
  )
  const head = isTitled
    ? h("header", {}, h("h2", { id: "dialog-title" }, title), h("span.space"), close)
    : null
  const dialog = h(
    "dialog",
    {
      class: `dialog-${name}`,
      ...(isTitled ? { "aria-labelledby": "dialog-title" } : { "aria-label": title }),
    },
    head,
    h("div.dialog-body", {}, body),
    foot.length ? h("footer", {}, foot) : null,
  )
  const before = document.activeElement
  close.addEventListener("click", () => dialog.close())
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close())
  dialog.addEventListener("keydown", (event) => event.stopPropagation())
  dialog.addEventListener("close", () => {
    dialog.remove()
    closed?.()
    if (before?.isConnected) before.focus({ preventScroll: true })
  })
  document.body.append(dialog)
  dialog.tabIndex = -1
  dialog.showModal()
  dialog.focus()
  return dialog
}

/** A line for an error in a dialog. */
export function problem(error) {
  return h(
    "p.problem",
    { role: "alert" },
    icon("alert"),
    h("span", {}, error.message ?? String(error)),
  )
}
