// A note on a response.

import { mark } from "../actions.js"
import { h } from "../core/dom.js"
import { draft, keepDraft } from "../live/drafts.js"
import { openDialog } from "./dialog.js"

const LONGEST = 2000

/** @param {object} app @param {string} id */
export function openNote(app, id) {
  const { state } = app
  const was = state.tree.get(id)?.note ?? ""
  const place = `note:${id}`
  const area = h("textarea", {
    rows: "4",
    maxlength: LONGEST,
    "aria-label": "Note",
    placeholder: "What is worth remembering about this response?",
    dir: "auto",
  })
  area.value = draft(place) || was
  area.addEventListener("input", () => keepDraft(place, area.value))
  const save = (text) => {
    keepDraft(place, "")
    dialog.close()
    mark(
      app,
      id,
      { note: text.trim() || null },
      text.trim() ? "The note is kept" : "No note any more",
    )
  }
  const foot = [
    was
      ? h("button.quiet", { type: "button", on: { click: () => save("") } }, "Remove")
      : null,
    h("span.space"),
    h(
      "button.primary",
      { type: "button", title: "Ctrl+Enter", on: { click: () => save(area.value) } },
      "Keep",
    ),
  ]
  const dialog = openDialog({ title: "Note", name: "note", body: [area], foot })
  area.focus()
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(area.value)
  })
}
