// Icons, 16 by 16 pixels, in the colour of the text beside them.

import { svg } from "../core/dom.js"

const PATHS = {
  alert: "M8 2.2 14.2 13H1.8zM8 6.4v3.2M8 11.3v.2",
  back: "M10 3 5 8l5 5",
  branch:
    "M4 5.6v4.8M12 6.9c0 3.4-8 1.2-8 3.7M4 2.1a1.7 1.7 0 1 1 0 3.4 1.7 1.7 0 0 1 0-3.4" +
    "M4 10.5a1.7 1.7 0 1 1 0 3.4 1.7 1.7 0 0 1 0-3.4M12 3.4a1.7 1.7 0 1 1 0 3.4 1.7 1.7 0 0 1 0-3.4",
  check: "M3 8.6 6.4 12 13 4.6",
  close: "M4 4l8 8M12 4l-8 8",
  columns: "M2.5 3h4.2v10H2.5zM9.3 3h4.2v10H9.3z",
  continue: "M2.5 8h10.6M9.2 4.2 13 8l-3.8 3.8",
  copy: "M5.7 5.7h7.6v7.6H5.7zM10.3 5.6V2.7H2.7v7.6h2.9",
  disk:
    "M3.5 4c0-1 2-1.8 4.5-1.8s4.5.8 4.5 1.8-2 1.8-4.5 1.8S3.5 5 3.5 4zM3.5 4v8c0 1 2 1.8 4.5 1.8" +
    "s4.5-.8 4.5-1.8V4M3.5 8c0 1 2 1.8 4.5 1.8s4.5-.8 4.5-1.8",
  down: "M3.5 6 8 10.5 12.5 6",
  download: "M8 2.2v7.6M4.8 6.8 8 10l3.2-3.2M2.8 13.3h10.4",
  edit: "M10.4 3.1l2.5 2.5L5.8 12.7l-3.1.6.6-3.1z",
  evicted: "M8 3a5 5 0 0 1 5 5M13 8a5 5 0 0 1-5 5M8 13a5 5 0 0 1-5-5M3 8a5 5 0 0 1 5-5",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  flag: "M3.5 14V2.5h8.6L10.3 5.8l1.8 3.2H3.5",
  focus: "M8 4.6a3.4 3.4 0 1 1 0 6.8 3.4 3.4 0 0 1 0-6.8M8 1.6v3M8 11.4v3M1.6 8h3M11.4 8h3",
  forward: "M6 3l5 5-5 5",
  fresh: "M8 1.9 9.6 6.4 14.1 8 9.6 9.6 8 14.1 6.4 9.6 1.9 8l4.5-1.6z",
  gear: "M2.5 4.5h6M11.5 4.5h2M2.5 11.5h2M7.5 11.5h6M10 2.9v3.2M6 9.9v3.2",
  graph: "M2.2 8h3M5.2 3.4v9.2M5.2 3.4h2.6M5.2 12.6h2.6M7.8 1.9h6v3h-6zM7.8 11.1h6v3h-6z",
  help: "M6 6.1a2 2 0 1 1 2.9 1.8c-.6.3-.9.7-.9 1.4M8 11.4v.2M8 1.8a6.2 6.2 0 1 1 0 12.4A6.2 6.2 0 0 1 8 1.8",
  hot: "M8.3 1.7c.4 2.5 3.5 3.8 3.5 7.3a3.8 3.8 0 0 1-7.6 0c0-1.7.8-2.7 1.6-3.5.1 1 .6 1.6 1.1 1.8-.2-2.1.2-4.3 1.4-5.6z",
  link: "M6.7 9.3l2.6-2.6M7.4 4.8l1.2-1.2a2.7 2.7 0 0 1 3.8 3.8l-1.2 1.2M8.6 11.2l-1.2 1.2a2.7 2.7 0 0 1-3.8-3.8l1.2-1.2",
  minus: "M3.5 8h9",
  moon: "M13.2 9.4A5.6 5.6 0 0 1 6.6 2.8a5.6 5.6 0 1 0 6.6 6.6z",
  more: "M3.4 8h.2M7.9 8h.2M12.4 8h.2",
  note: "M2.8 2.8h10.4v6.9l-3.5 3.5H2.8zM9.6 13v-3.4h3.5",
  plus: "M8 3.5v9M3.5 8h9",
  retry: "M13 8a5 5 0 1 1-1.5-3.6M13.2 1.9v3.2H10",
  search: "M7 2.6a4.4 4.4 0 1 1 0 8.8 4.4 4.4 0 0 1 0-8.8M10.3 10.3l3.4 3.4",
  send: "M8 13.2V3M4 6.8 8 2.8l4 4",
  star: "M8 1.9l1.9 3.9 4.3.6-3.1 3 .7 4.3L8 11.7l-3.8 2 .7-4.3-3.1-3 4.3-.6z",
  stop: "M4.4 4.4h7.2v7.2H4.4z",
  sun: "M8 5.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6M8 1.4v1.4M8 13.2v1.4M1.4 8h1.4M13.2 8h1.4M3.3 3.3l1 1M11.7 11.7l1 1M12.7 3.3l-1 1M4.3 11.7l-1 1",
  text: "M2.8 3.5h10.4M2.8 6.5h10.4M2.8 9.5h7M2.8 12.5h4.5",
  trash: "M2.8 4.4h10.4M6 4.2V2.6h4v1.6M4.3 4.4l.6 9h6.2l.6-9M6.8 7v4M9.2 7v4",
}

/** @param {keyof PATHS} name @returns {SVGElement} decoration only: say its meaning in words, too */
export function icon(name) {
  return svg(
    "svg",
    { class: `icon icon-${name}`, viewBox: "0 0 16 16", "aria-hidden": "true" },
    svg("path", { d: PATHS[name] }),
  )
}

/** The icon of a word that `reached` gives, see model/tree.js. */
export function reachedIcon(word) {
  return icon(word === "begin" ? "flag" : word)
}
