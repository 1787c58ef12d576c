// The dialog for a response's note. Unsaved text is kept as a draft.

import { h } from "../core/dom.js"
import { draft, keepDraft } from "../model/drafts.js"
import { openDialog } from "../widgets/dialog.js"

const LONGEST = 2000

/** @param {string} id @param {string} was the note so far
 * @param {(note: ?string) => void} save gets null for no note */
export function openNote(id, was, save) {
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
  const done = (text) => {
    keepDraft(place, "")
    dialog.close()
    save(text.trim() || null)
  }
  const foot = [
    was
      ? h("button.quiet", { type: "button", on: { click: () => done("") } }, "Remove")
      : null,
    h("span.space"),
    h(
      "button.primary",
      { type: "button", title: "Ctrl+Enter", on: { click: () => done(area.value) } },
      "Save",
    ),
  ]
  const dialog = openDialog({ title: "Note", name: "note", body: [area], foot })
  area.focus()
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done(area.value)
  })
}
