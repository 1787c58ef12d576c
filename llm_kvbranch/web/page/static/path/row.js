// Sibling answers side by side, as a retry gives them.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { icon } from "../widgets/icons.js"

export class SiblingRow {
  /** @param {{state: import("../model/state.js").State, does: object,
   *   viewFor: (id: string) => import("./turn.js").TurnView}} pane */
  constructor(pane) {
    this.pane = pane
    this.head = h("header.row-head")
    this.columns = h("div.row-columns", {
      role: "group",
      "aria-label": "Answers side by side",
    })
    this.element = h("section.row", {}, this.head, this.columns)
    this.isShown = false
  }

  /** The turns to show side by side: the group of the selected response, if it is in one.
   * @param {object[]} path the turns up to the selected one */
  turns(path) {
    const { state } = this.pane
    const { group } = state
    const last = path.at(-1)
    this.isShown = Boolean(
      last &&
      group &&
      group.runs.length > 1 &&
      group.runs.some((run) => run.id === last.id),
    )
    if (!this.isShown) return []
    return group.runs
      .filter((run) => state.tree.get(run.id))
      .map((run) => (run.isLogged && state.turns.get(run.id)) || run.asTurn())
  }

  /** @param {object[]} turns @param {number} index of these turns on their path
   * @param {object} [before] the turn before them */
  show(turns, index, before) {
    const { pane } = this
    const { state } = pane
    const { group } = state
    const running = group.runs.filter((run) => run.isRunning).length
    const stop = h(
      "button.stop",
      { type: "button", on: { click: () => pane.does.stop(group.runs[0]) } },
      icon("stop"),
      "Stop all",
    )
    const close = h(
      "button.quiet",
      {
        type: "button",
        title: "Show only the selected answer",
        on: { click: () => state.closeGroup() },
      },
      icon("close"),
      "Close",
    )
    const compare = h(
      "button.quiet",
      {
        type: "button",
        on: { click: () => pane.does.compare(turns.map((turn) => turn.id)) },
      },
      icon("columns"),
      "Compare",
    )
    const words = running
      ? `${running} of ${counted(turns.length, "answer")} in progress`
      : counted(turns.length, "answer")
    const key = `${running} ${turns.map((turn) => turn.id)}`
    if (key !== this.key) {
      this.key = key
      this.head.replaceChildren(
        h("h2", {}, words),
        h("span.space"),
        ...(running ? [stop] : turns.length > 1 ? [compare, close] : [close]),
      )
    }
    const elements = turns.map((turn) => {
      const view = pane.viewFor(turn.id)
      view.update(turn, {
        node: state.tree.get(turn.id),
        index,
        before,
        isLast: turn.id === state.selected,
      })
      return this.#column(view, turn.id)
    })
    this.columns.replaceChildren(...elements)
    return this.element
  }

  #column(view, id) {
    const { state } = this.pane
    const isChosen = id === state.selected
    const choose = h(
      "button.choose",
      {
        type: "button",
        "aria-pressed": String(isChosen),
        on: { click: () => state.select(id, { quietly: true }) },
      },
      icon(isChosen ? "check" : "continue"),
      isChosen ? "Continuing from this one" : "Continue from this one",
    )
    return h("div.column", { class: isChosen ? "is-chosen" : "" }, view.element, choose)
  }
}
