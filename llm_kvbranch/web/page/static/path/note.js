// The note of a turn; a click on it opens the dialog to edit it.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"

/** The note of a turn, if it has one. */
export function note(pane, turn) {
  if (!turn.note) return null
  const text = h("span", { dir: "auto" }, turn.note)
  if (!pane.state.mayWrite) return h("p.note", {}, icon("note"), text)
  const edit = () => pane.does.note(turn.id)
  return h(
    "button.note",
    { type: "button", title: "Edit the note", on: { click: edit } },
    icon("note"),
    text,
  )
}
