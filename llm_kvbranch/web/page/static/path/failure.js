// Shown in place of an answer that failed: why, and buttons to try again or discard it.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"

/** @param {import("../model/run.js").Run} run
 * @param {{again: Function, discard: Function}} does */
export function failure(run, does) {
  const again = h(
    "button",
    { type: "button", on: { click: () => does.again(run) } },
    "Try again",
  )
  const discard = h(
    "button.quiet",
    { type: "button", on: { click: () => does.discard(run) } },
    "Discard",
  )
  const line = h(
    "div.failure",
    { role: "alert" },
    icon("alert"),
    h("span.failure-text", {}, run.error?.message ?? "No answer"),
    h("span.failure-actions", {}, again, discard),
  )
  if (run.error?.retryAfter) countDown(again, run.error)
  return line
}

/** Disable a button for as long as the server asked to wait. */
function countDown(button, error) {
  error.until ??= Date.now() + error.retryAfter * 1000
  const tick = () => {
    const left = Math.ceil((error.until - Date.now()) / 1000)
    button.disabled = left > 0
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again"
    if (left > 0) setTimeout(tick, 250)
  }
  tick()
}
