// The server's slots as a row of small squares: what each holds and does.

import { h } from "../core/dom.js"
import { counted, number } from "../core/format.js"

const BUSY_MS = 700 // between requests while answers are in progress
const IDLE_MS = 15_000

export class Slots {
  /** @param {object} app */
  constructor({ state, api }) {
    this.state = state
    this.api = api
    this.squares = h("span.slots-squares", { "aria-hidden": "true" })
    this.words = h("span.off-screen")
    this.element = h("div.slots", { hidden: true }, this.squares, this.words)
    this.squares.addEventListener("click", (event) => {
      const { response } = event.target.dataset
      if (response && state.tree.get(response)) state.select(response)
    })
    state.on("run", () => this.isBusy || this.look())
    document.addEventListener("visibilitychange", () => document.hidden || this.look())
    this.look()
  }

  async look() {
    clearTimeout(this.timer)
    this.isBusy = [...this.state.runs].some((run) => run.isRunning)
    if (document.hidden) return
    try {
      this.#show(await this.api.get("slots"))
    } catch {
      this.element.hidden = true // other parts of the page report the error
    }
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.look(), this.isBusy ? BUSY_MS : IDLE_MS)
  }

  #show({ slots, n_used: used, n_cells: cells, n_waiting: waiting }) {
    const squares = slots.map((slot) => {
      const share = slot.n_target ? slot.n_tokens / slot.n_target : 1
      const words = [
        `slot ${slot.id}: ${slot.state}`,
        slot.n_tokens ? counted(slot.n_tokens, "token") : null,
        slot.n_shared ? `${number(slot.n_shared)} shared` : null,
      ]
      const square = h("i", {
        class: `is-${slot.state}`,
        title: words.filter(Boolean).join(", "),
        data: slot.response_id ? { response: slot.response_id } : {},
      })
      if (slot.state === "reading")
        square.style.setProperty("--share", `${Math.round(share * 100)}%`)
      return square
    })
    this.squares.replaceChildren(...squares)
    const busy = slots.filter(
      (slot) => slot.state === "reading" || slot.state === "answering",
    ).length
    const parts = [
      `${busy} of ${counted(slots.length, "slot")} busy`,
      `${number(used)} of ${counted(cells, "token")} of context used`,
      waiting ? `${waiting} waiting` : null,
    ]
    this.words.textContent = parts.filter(Boolean).join(", ")
    this.element.title = this.words.textContent
    this.element.hidden = false
  }
}
