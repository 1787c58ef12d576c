// The map's buttons: zoom, show the whole tree, go to the selected response.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"

/** @param {{zoom: (factor: number) => void, fit: () => void, centre: () => void}} graph */
export function controls(graph) {
  const button = (name, label, key, does) =>
    h(
      "button.quiet",
      {
        type: "button",
        "aria-label": label,
        title: `${label} (${key})`,
        "aria-keyshortcuts": key,
        on: { click: does },
      },
      icon(name),
    )
  return h(
    "div.graph-controls",
    { role: "toolbar", "aria-label": "View of the map", data: { noPan: "" } },
    button("plus", "Zoom in", "+", () => graph.zoom(1.25)),
    button("minus", "Zoom out", "-", () => graph.zoom(0.8)),
    button("fit", "Show the whole tree", "0", () => graph.fit()),
    button("focus", "Go to the selected response", ".", () => graph.centre()),
  )
}
