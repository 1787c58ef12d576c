// The box for a question about an answer, or for an edited prompt. It opens in the
// conversation, below the text that it is about.

import { h } from "../core/dom.js"
import { reachedIcon } from "../widgets/icons.js"
import { AskField } from "./box.js"

/** The ways to ask about an answer; `whole` is the hint where no text is selected. */
export const MODES = {
  branch: {
    key: "b",
    label: "Branch here",
    about:
      "The answer ends after the selection; the rest of it is not part of the new branch.",
    whole: "A new branch after the whole answer.",
  },
  focus: {
    key: "f",
    label: "Focus",
    about: "Keeps the whole conversation and quotes the selection in the question.",
  },
  fresh: {
    key: "a",
    label: "Ask fresh",
    about: "A new context with nothing but the selection, quoted.",
    whole: "A new context with nothing but this answer, quoted.",
  },
}

export class Asking {
  constructor() {
    this.element = null
  }

  get isOpen() {
    return this.element !== null
  }

  /** Open the box for a question about an answer; no `excerpt` means all of it.
   * @param {{mode: string, excerpt: ?string, place: string, after: Element,
   *   send: (mode: string, text: string) => void, closed?: () => void}} about */
  open({ mode, excerpt, place, after, send, closed }) {
    this.close()
    this.closed = closed
    const hint = h("p.asking-hint", { id: "asking-hint" })
    const modes = Object.keys(MODES).filter((name) => excerpt !== null || MODES[name].whole)
    const choose = (name) => {
      mode = name
      hint.textContent = excerpt === null ? MODES[name].whole : MODES[name].about
    }
    const radios = modes.map((name) => {
      const radio = h("input", { type: "radio", name: "asking-mode", value: name })
      radio.checked = name === mode
      radio.addEventListener("change", () => choose(name))
      return h(
        "label",
        { class: `is-${name}` },
        radio,
        reachedIcon(name),
        MODES[name].label,
      )
    })
    choose(modes.includes(mode) ? mode : modes[0])
    const words = excerpt === null ? null : shortened(excerpt)
    const field = this.#field(place, "Your question", (text) => send(mode, text))
    this.#show(
      h(
        "div.asking",
        { role: "group", "aria-label": "Ask about this" },
        h("div.asking-modes", { role: "radiogroup", "aria-label": "How to ask" }, radios),
        words && h("blockquote.asking-excerpt", { dir: "auto" }, words),
        h("div.composer-field", {}, field.area, field.button),
        hint,
      ),
      after,
      field,
    )
  }

  /** Open the box for an edited prompt. */
  edit({ prompt, about, place, after, send, closed }) {
    this.close()
    this.closed = closed
    const field = this.#field(place, "The prompt", send, prompt)
    this.#show(
      h(
        "div.asking.is-edit",
        { role: "group", "aria-label": "Edit the prompt" },
        h("div.composer-field", {}, field.area, field.button),
        h("p.asking-hint", {}, about),
      ),
      after,
      field,
    )
    field.area.select()
  }

  #field(place, label, send, otherwise = "") {
    const field = new AskField({
      label,
      hint: label,
      send: (text) => {
        this.close()
        send(text)
      },
      cancel: () => this.close(true),
    })
    field.at(place, otherwise)
    return field
  }

  #show(element, after, field) {
    const cancel = h(
      "button.quiet.asking-close",
      { type: "button", on: { click: () => this.close(true) } },
      "Cancel",
    )
    element.lastChild.append(cancel)
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return
      event.stopPropagation()
      this.close(true)
    })
    this.element = element
    this.back = document.activeElement
    after.after(element)
    field.at(field.place, field.value)
    field.area.focus({ preventScroll: true })
    element.scrollIntoView({ block: "nearest" })
  }

  /** Close the box. @param {boolean} [refocus] move the focus back to where it was
   * @returns {boolean} whether it was open */
  close(refocus = false) {
    if (!this.element) return false
    this.element.remove()
    this.element = null
    this.closed?.()
    if (refocus && this.back?.isConnected) this.back.focus({ preventScroll: true })
    return true
  }
}

function shortened(text) {
  const plain = text.replace(/\s+/g, " ").trim()
  return plain.length > 240 ? `${plain.slice(0, 120)} … ${plain.slice(-110)}` : plain
}
