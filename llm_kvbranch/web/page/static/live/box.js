// A text field for prompts: grows as one types, sends on Enter, keeps drafts.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"
import { draft, keepDraft } from "../model/drafts.js"

const TALLEST = 280 // pixels

export class AskField {
  /** @param {{label: string, hint?: string, send: (text: string) => void, cancel?: () => void,
   *   word?: string}} about */
  constructor({ label, hint = "", send, cancel, word = "Send" }) {
    this.send = send
    this.cancel = cancel
    this.place = null
    this.area = h("textarea", {
      rows: "1",
      "aria-label": label,
      placeholder: hint,
      dir: "auto",
      spellcheck: "true",
      enterkeyhint: "send",
    })
    this.button = h(
      "button.send",
      { type: "button", title: `${word} (Enter)`, "aria-label": word },
      icon("send"),
    )
    this.area.addEventListener("input", () => this.#changed())
    this.area.addEventListener("keydown", (event) => this.#key(event))
    this.button.addEventListener("click", () => this.submit())
  }

  /** Show the draft of a place. @param {string} place @param {string} [otherwise] */
  at(place, otherwise = "") {
    this.place = place
    this.area.value = draft(place) || otherwise
    this.#changed(false)
  }

  get value() {
    return this.area.value
  }

  /** Allow or forbid sending. @param {boolean} may @param {string} [why] not */
  allow(may, why = "") {
    this.isAllowed = may
    this.why = why
    this.#changed(false)
  }

  submit() {
    const text = this.area.value.trim()
    if (!text || this.isAllowed === false) return
    this.area.value = ""
    this.#changed(false)
    this.send(text)
  }

  #changed(keep = true) {
    const { area } = this
    if (keep && this.place) keepDraft(this.place, area.value)
    this.button.disabled = !area.value.trim() || this.isAllowed === false
    this.button.title = this.why || "Send (Enter)"
    area.style.height = "auto"
    area.style.height = `${Math.min(TALLEST, area.scrollHeight)}px`
  }

  #key(event) {
    if (event.isComposing) return
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault()
      this.submit()
    } else if (event.key === "Escape") {
      event.stopPropagation()
      if (this.cancel) this.cancel()
      else this.area.blur()
    }
  }
}
