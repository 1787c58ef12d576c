// The excerpts of an answer that branches start from, and the links to those branches.

import { h } from "../core/dom.js"
import { reached } from "../model/tree.js"
import { reachedIcon } from "../widgets/icons.js"

const MOST = 4 // links in a row; the rest is shown as a number

/** The marks of an answer, in UTF-16 units.
 * @param {object[]} children of a turn
 * @param {import("../core/codepoints.js").CodePoints} points of its text */
export function marksOf(children, points) {
  return children
    .filter((child) => child.end !== null && child.end !== undefined)
    .map((child) => ({
      start: points.unit(child.start ?? 0),
      end: points.unit(child.end),
      kind: reached(child),
      id: child.id,
    }))
}

/** Put links to branches after the text that they start from.
 * @param {import("../markdown/view.js").MarkdownView} view
 * @param {object[]} children
 * @param {(id: string) => HTMLAnchorElement} link */
export function linkBranches(view, children, link) {
  for (const old of view.element.querySelectorAll(".leaves")) old.remove()
  const byId = new Map(children.map((child) => [child.id, child]))
  const pieces = view.pieces()
  const ends = new Map()
  for (const mark of view.marks) {
    if (!ends.has(mark.end)) ends.set(mark.end, [])
    ends.get(mark.end).push(byId.get(mark.id))
  }
  for (const [end, leaving] of ends) {
    const piece = lastBefore(pieces, end)
    if (!piece) continue
    const around = piece.node.parentElement.closest("mark") ?? piece.node
    const links = leaving
      .filter(Boolean)
      .slice(0, MOST)
      .map((child) => chip(child, link(child.id)))
    if (leaving.length > MOST)
      links.push(h("span.leaves-more", {}, `+${leaving.length - MOST}`))
    around.after(h("span.leaves", {}, links))
  }
}

function chip(child, link) {
  const word = reached(child)
  const says = `${word}: ${child.question}`
  link.classList.add("leaf", `is-${word}`)
  link.title = says
  link.setAttribute("aria-label", says.slice(0, 200))
  link.replaceChildren(reachedIcon(word))
  return link
}

function lastBefore(pieces, end) {
  let low = 0
  let high = pieces.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (pieces[middle].start < end) low = middle + 1
    else high = middle
  }
  return pieces[low - 1]
}

/** Says where an answer was cut, also for those who cannot see that text is dimmed. */
export function cutNote() {
  const words = "cut here: the dimmed text is not part of this branch"
  return h("p.cut-note", {}, h("span", {}, words))
}
