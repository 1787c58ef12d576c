// A path or a tree as a file.

import { h } from "../core/dom.js"
import { icon } from "../core/icons.js"
import { openDialog } from "./dialog.js"

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
          `${n} ${n === 1 ? "turn" : "turns"}, from the root to the selected response`,
        ),
        row(
          "tree",
          "The whole tree",
          `${state.tree.nodes.size} responses and how they were reached`,
        ),
      ),
    ],
  })
}
