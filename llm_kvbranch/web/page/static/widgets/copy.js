// Copying to the clipboard, and a button that does it.

import { h } from "../core/dom.js"
import { icon } from "./icons.js"

/** Copy a text. Pages not served over HTTPS need the fallback.
 * @param {string} text @returns {Promise<boolean>} whether it worked */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const field = h("textarea.off-screen", { "aria-hidden": "true" })
    field.value = text
    document.body.append(field)
    field.select()
    const worked = document.execCommand("copy")
    field.remove()
    return worked
  }
}

/** A button that copies what a function returns. @param {() => string} text */
export function copyButton(text, label = "Copy") {
  const button = h(
    "button.quiet.copy",
    { type: "button", "aria-label": label, title: label },
    icon("copy"),
  )
  button.addEventListener("click", async () => {
    const worked = await copy(text())
    button.replaceChildren(icon(worked ? "check" : "alert"))
    setTimeout(() => button.replaceChildren(icon("copy")), 1200)
  })
  return button
}
