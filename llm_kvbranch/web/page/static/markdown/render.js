// Renders parsed Markdown as elements. HTML in the source is shown as text.

import { copyButton } from "../widgets/copy.js"
import { h } from "../core/dom.js"
import { inlineOf } from "./inline.js"
import { highlight } from "./highlight.js"

const SCHEMES = new Set(["http:", "https:", "mailto:"])

/** The element of a block. @param {object} block @param {import("./painter.js").Painter} paint */
export function render(block, paint) {
  return RENDER[block.type](block, paint)
}

const RENDER = {
  paragraph: (block, paint) => inline(h("p"), block.lines, paint),
  heading: (block, paint) =>
    inline(h(`h${Math.min(6, block.level + 2)}.h${block.level}`), block.lines, paint),
  rule: () => h("hr"),
  code,
  table,
  list,
  quote: (block, paint) =>
    h(
      "blockquote",
      { dir: "auto" },
      block.blocks.map((each) => render(each, paint)),
    ),
}

function code(block, paint) {
  const { lines, language } = block
  const element = h("code")
  const text = lines.map(({ at, end }) => paint.source.slice(at, end)).join("\n")
  const show = painterOfLines(lines, paint, element)
  for (const { from, to, kind } of highlight(text, language)) show(from, to, kind)
  const name = language || "text"
  return h(
    "figure.code",
    { dir: "ltr" },
    h(
      "figcaption",
      {},
      h("span", {}, name),
      copyButton(() => text, "Copy code"),
    ),
    h("pre", { tabindex: "0", role: "region", "aria-label": `Code: ${name}` }, element),
  )
}

function list(block, paint) {
  const { ordered, start, tight, items } = block
  const element = h(ordered ? "ol" : "ul", { class: tight ? "is-tight" : "" })
  if (ordered && start !== 1) element.setAttribute("start", start)
  for (const { blocks, task } of items) {
    const box =
      task === null
        ? null
        : h(
            "span.task",
            { role: "img", "aria-label": task ? "done" : "to do" },
            task ? "☑" : "☐",
          )
    element.append(
      h(
        "li",
        { dir: "auto" },
        box,
        blocks.map((each) => render(each, paint)),
      ),
    )
  }
  return element
}

function table(block, paint) {
  const row = (tag, cells) =>
    h(
      "tr",
      {},
      block.head.map((_, i) => {
        const cell = h(tag, { class: block.align[i] ? `is-${block.align[i]}` : "" })
        return cells[i] ? inline(cell, [cells[i]], paint) : cell
      }),
    )
  const head = h("thead", {}, row("th", block.head)) // first: pieces are in order
  const whole = h(
    "table",
    {},
    head,
    h(
      "tbody",
      {},
      block.rows.map((cells) => row("td", cells)),
    ),
  )
  return h("div.table", { tabindex: "0", role: "region", "aria-label": "Table" }, whole)
}

/** Put lines with their inline markup into an element. Its direction is set last, or the
 * browser would determine it again after every part. */
function inline(element, lines, paint) {
  const text = lines.map(({ at, end }) => paint.source.slice(at, end)).join("\n")
  put(element, inlineOf(text), paint, segmentsOf(lines))
  element.setAttribute("dir", "auto")
  return element
}

function put(parent, items, paint, segments) {
  for (const item of items) {
    if (item.type === "text") spread(parent, item.from, item.to, paint, segments)
    else if (item.type === "break") parent.append(h("br"))
    else if (item.type === "entity") {
      const [start, end] = [
        sourceOf(segments, item.from),
        sourceOf(segments, item.to - 1) + 1,
      ]
      paint.piece(parent, item.value, start, end)
    } else {
      const element = inlineElement(item)
      if (item.type === "code") spread(element, item.from, item.to, paint, segments)
      else put(element, item.children, paint, segments)
      parent.append(element)
    }
  }
}

function inlineElement(item) {
  if (item.type !== "link" && item.type !== "image") return h(item.type)
  const url = URL.canParse(item.href) ? new URL(item.href) : null
  if (!url || !SCHEMES.has(url.protocol)) return h("span.no-link", { title: item.href })
  const rel = "noopener noreferrer nofollow"
  const element = h("a", { href: url.href, rel, target: "_blank", title: url.href })
  if (item.type === "image") element.classList.add("is-image")
  return element
}

/** For each line its start in the joined text (`from`) and in the source (`at`). */
function segmentsOf(lines) {
  let from = 0
  return lines.map(({ at, end }) => {
    const segment = { from, at, end }
    from += end - at + 1 // with the line break
    return segment
  })
}

function segmentAt(segments, at) {
  let low = 0
  let high = segments.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (segments[middle].from <= at) low = middle
    else high = middle - 1
  }
  return low
}

function sourceOf(segments, at) {
  const segment = segments[segmentAt(segments, at)]
  return segment.at + at - segment.from
}

/** Show part of a joined text: one or two text nodes for each of its lines. */
function spread(parent, from, to, paint, segments) {
  for (let i = segmentAt(segments, from); from < to; i++) {
    const segment = segments[i]
    const moved = segment.at - segment.from
    const end = segment.end - moved // of the line, without its line break
    const isCRLF = paint.source[segment.end] === "\r"
    paint.text(parent, from + moved, Math.min(to, isCRLF ? end : end + 1) + moved)
    if (isCRLF && to > end) paint.text(parent, segment.end + 1, segment.end + 2)
    from = end + 1
  }
}

/** A function that shows parts of the joined lines, in a span if they have a kind. */
function painterOfLines(lines, paint, element) {
  const segments = segmentsOf(lines)
  return (from, to, kind) => {
    const parent = kind ? h(`span.${kind}`) : element
    spread(parent, from, to, paint, segments)
    if (kind) element.append(parent)
  }
}
