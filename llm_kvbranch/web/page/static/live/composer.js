// Where one goes on from what is selected.

import { h } from "../core/dom.js"
import { icon } from "../core/icons.js"
import { AskField } from "./box.js"
import { draft, keepDraft } from "./drafts.js"
import { samplingFields } from "./settings.js"

const placeOf = (id) => `continue:${id}`

export class Composer {
  /** @param {import("../model/state.js").State} state @param {object} does */
  constructor(state, does) {
    this.state = state
    this.does = does
    this.field = new AskField({
      label: "Go on from the selected response",
      hint: "Go on from here…",
      send: (text) => does.continueFrom(state.selected, text),
      cancel: () => (this.run?.isRunning ? does.stop(this.run) : does.leave()),
    })
    this.where = h("span.composer-where")
    this.stop = h(
      "button.stop",
      { type: "button", title: "Stop (Esc)", on: { click: () => does.stop(this.run) } },
      icon("stop"),
      "Stop",
    )
    const sampling = h(
      "details.sampling",
      {},
      h(
        "summary",
        { title: "How answers are made" },
        icon("gear"),
        h("span.off-screen", {}, "Sampling"),
      ),
      h("div.sampling-fields", {}, samplingFields()),
    )
    this.element = h(
      "div.composer",
      {},
      h("div.composer-field", {}, this.field.area, this.stop, this.field.button),
      h(
        "div.composer-foot",
        {},
        this.where,
        h("span.space"),
        h(
          "span.composer-keys",
          {},
          h("kbd", {}, "⏎"),
          " send ",
          h("kbd", {}, "⇧⏎"),
          " new line",
        ),
        sampling,
      ),
    )
    document.addEventListener("pointerdown", (event) => {
      if (!sampling.contains(event.target)) sampling.open = false
    })
    state.on("select", () => this.update())
    state.on("tree", () => this.update())
    state.on("run", () => this.update())
    state.on("renamed", ({ before, id }) => {
      keepDraft(placeOf(id), draft(placeOf(before)))
      keepDraft(placeOf(before), "")
      this.update()
    })
    state.on("drafts", (place) => place === this.field.place && this.field.at(place))
  }

  /** The answer that is selected, if it is still coming. */
  get run() {
    const run = this.state.tree.get(this.state.selected)?.run
    return run && !run.isLogged ? run : null
  }

  focus() {
    this.field.area.focus()
  }

  update() {
    const { state, run } = this
    const node = state.tree.get(state.selected)
    if (!node) return
    const place = placeOf(state.selected)
    if (this.field.place !== place) this.field.at(place)
    const coming = Boolean(run?.isRunning)
    this.stop.hidden = !coming
    this.field.button.hidden = coming
    this.field.allow(
      !run,
      coming ? "This answer is still coming" : "This answer is not in the log",
    )
    const model = state.config.model ?? "the model"
    this.where.textContent = node.children.length
      ? `A new branch here, answered by ${model}`
      : `Answered by ${model}`
  }
}

/** What stands in its place where nobody answers. */
export function readOnly() {
  return h(
    "p.read-only",
    {},
    "Read only. To go on from any response: ",
    h("code", {}, "llm kvbranch serve"),
  )
}
