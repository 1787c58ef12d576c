// Asking about a part of an answer, or asking something else: a box in the text, below
// what it is about.

import { h } from "../core/dom.js"
import { reachedIcon } from "../core/icons.js"
import { AskField } from "./box.js"

/** The ways to ask about a part of an answer. */
export const MODES = {
  branch: {
    key: "b",
    label: "Branch here",
    about:
      "The answer ends behind the selection: what comes after it is not in the new branch.",
    whole: "A new branch after the whole answer.",
  },
  focus: {
    key: "f",
    label: "Focus",
    about: "The whole conversation stays; the selection is quoted in the question.",
  },
  fresh: {
    key: "a",
    label: "Ask fresh",
    about: "A new context that holds nothing but the selection, quoted.",
    whole: "A new context that holds nothing but this answer, quoted.",
  },
}

export class Asking {
  constructor() {
    this.element = null
  }

  get isOpen() {
    return this.element !== null
  }

  /** Ask about a part of an answer, or all of it.
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
    const field = this.#field(place, "What do you ask?", (text) => send(mode, text))
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

  /** Ask something else in place of a prompt. */
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

  /** @param {boolean} [refocus] go back to where one came from */
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
