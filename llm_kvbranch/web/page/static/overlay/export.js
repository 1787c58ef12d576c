// The dialog to download a path or a tree as a file.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { icon } from "../widgets/icons.js"
import { openDialog } from "../widgets/dialog.js"

/** @param {object} app @param {string} id */
export function openExport({ api, state }, id) {
  const n = state.tree.path(id).length
  const link = (what, as, label) =>
    h(
      "a.button",
      { href: api.url("export", { id, what, as }).href, download: "" },
      icon("download"),
      label,
    )
  const row = (what, title, about) =>
    h(
      "li",
      {},
      h("div", {}, h("strong", {}, title), h("span", {}, about)),
      link(what, "markdown", "Markdown"),
      link(what, "json", "JSON"),
    )
  openDialog({
    title: "Export",
    name: "export",
    body: [
      h(
        "ul.export",
        {},
        row(
          "path",
          "This path",
          `${counted(n, "turn")}, from the root to the selected response`,
        ),
        row(
          "tree",
          "The whole tree",
          `${counted(state.tree.nodes.size, "response")} and how they are connected`,
        ),
      ),
    ],
  })
}
