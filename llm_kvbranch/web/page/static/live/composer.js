// The composer below the conversation: a follow-up to the selected response.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"
import { AskField } from "./box.js"
import { draft, keepDraft } from "../model/drafts.js"
import { samplingFields } from "./settings.js"

const placeOf = (id) => `continue:${id}`

export class Composer {
  /** @param {import("../model/state.js").State} state @param {object} does */
  constructor(state, does) {
    this.state = state
    this.does = does
    this.field = new AskField({
      label: "Continue from the selected response",
      hint: "Continue from here…",
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
        { title: "Sampling options" },
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

  /** The selected answer, if it is not in the log yet. */
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
      coming ? "This answer is still in progress" : "This answer is not in the log",
    )
    const model = state.config.model ?? "the model"
    this.where.textContent = node.children.length
      ? `A new branch here, answered by ${model}`
      : `Answered by ${model}`
  }
}

/** Shown in its place on a read-only page. */
export function readOnly() {
  return h(
    "p.read-only",
    {},
    "Read only. To continue from any response, run ",
    h("code", {}, "llm kvbranch serve"),
  )
}
