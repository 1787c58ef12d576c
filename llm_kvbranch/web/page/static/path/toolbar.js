// The toolbar above text that is selected in an answer.

import { copy } from "../widgets/copy.js"
import { h, settled } from "../core/dom.js"
import { icon, reachedIcon } from "../widgets/icons.js"
import { MODES } from "../live/asking.js"
import { chosenIn } from "./selection.js"

const GAP = 8

export class SelectionToolbar {
  /** @param {import("./pane.js").PathPane} pane
   * @param {(mode: string, chosen: object) => void} ask */
  constructor(pane, ask) {
    this.pane = pane
    this.chosen = null
    const buttons = Object.entries(MODES).map(([mode, { key, label }]) =>
      h(
        "button",
        {
          type: "button",
          class: `is-${mode}`,
          title: `${label} (${key})`,
          "aria-keyshortcuts": key,
          on: { click: () => ask(mode, this.chosen) },
        },
        reachedIcon(mode),
        label,
      ),
    )
    const copyIt = () => copy(this.text()).then(() => this.hide())
    const last = h(
      "button",
      { type: "button", title: "Copy", "aria-label": "Copy", on: { click: copyIt } },
      icon("copy"),
    )
    this.element = h(
      "div.selection-toolbar",
      { role: "toolbar", "aria-label": "Selected text", hidden: true },
      buttons,
      last,
    )
    // Pressing a button must not clear the selection
    this.element.addEventListener("pointerdown", (event) => event.preventDefault())
    const soon = settled(() => this.update(), 80)
    document.addEventListener("selectionchange", soon)
    pane.scroller.addEventListener("scroll", () => this.chosen && this.place(), {
      passive: true,
    })
    addEventListener("resize", soon)
  }

  /** The selected text, as Markdown source. */
  text() {
    const { turn } = this.pane.view(this.chosen.id)
    return turn.text.slice(this.chosen.start, this.chosen.end)
  }

  /** Show the toolbar for the current selection, or hide it. */
  update() {
    const chosen = chosenIn(document.getSelection())
    const turn = chosen?.answer.closest(".turn")
    const view = turn && this.pane.view(turn.dataset.id)
    const run = view?.about.node.run
    if (!view || (run && !run.isLogged)) return this.hide()
    this.chosen = { ...chosen, id: turn.dataset.id }
    this.element.hidden = false
    return this.place()
  }

  hide() {
    this.chosen = null
    this.element.hidden = true
  }

  place() {
    const { range } = this.chosen
    const rects = range.getClientRects()
    const first = rects[0] ?? range.getBoundingClientRect()
    const last = rects[rects.length - 1] ?? first
    const pane = this.pane.scroller.getBoundingClientRect()
    const { offsetWidth: w, offsetHeight: hgt } = this.element
    const above = first.top - hgt - GAP
    const top =
      above >= pane.top + 4 ? above : Math.min(last.bottom + GAP, pane.bottom - hgt - 4)
    const left = Math.max(pane.left + 8, Math.min(first.left, pane.right - w - 8))
    this.element.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`
    this.element.classList.toggle(
      "is-away",
      last.bottom < pane.top || first.top > pane.bottom,
    )
  }
}
