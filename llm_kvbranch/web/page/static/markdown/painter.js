// Makes text nodes that know their place in the source, split where marks start or end.

import { h } from "../core/dom.js"
import { keepPlace } from "./places.js"

const LONGEST = 4096 // units of one text node: longer ones are slow to lay out

/** @typedef {{start: number, end: number, kind: string}} Mark an excerpt that a branch
 *   starts from */
/** @typedef {{node: Text, start: number, end: number, marks: Mark[]}} Piece */

/** `pieces` are the text nodes made so far, in order. */
export class Painter {
  /** @param {string} source @param {Mark[]} marks @param {?number} cut text after
   *   it is not part of the selected branch */
  constructor(source, marks = [], cut = null) {
    this.source = source
    this.marks = marks
    this.cut = cut
    /** @type {Piece[]} */
    this.pieces = []
    const ends = marks.flatMap((mark) => [mark.start, mark.end])
    if (cut !== null) ends.push(cut)
    this.boundaries = [...new Set(ends)].sort((a, b) => a - b)
  }

  /** Show the source from start to end. @param {Element} parent */
  text(parent, start, end) {
    let i = this.boundaries.findIndex((each) => each > start)
    if (i < 0) i = this.boundaries.length
    while (start < end) {
      const bound = this.boundaries[i] ?? Infinity
      const to = Math.min(end, bound, start + LONGEST)
      this.piece(parent, this.source.slice(start, to), start, to)
      if (to === bound) i += 1
      start = to
    }
  }

  /** Show a value in place of the source from start to end. */
  piece(parent, value, start, end) {
    const node = document.createTextNode(value)
    keepPlace(node, start, end)
    const marks = this.marks.filter((mark) => mark.start <= start && end <= mark.end)
    const isCut = this.cut !== null && start >= this.cut
    this.pieces.push({ node, start, end, marks })
    const kinds = [...new Set(marks.map((mark) => `marked-${mark.kind}`))]
    if (marks.length) parent.append(h("mark", { class: kinds.join(" ") }, node))
    else if (isCut) parent.append(h("span.is-cut", {}, node))
    else parent.append(node)
    if (marks.length && isCut) node.parentNode.classList.add("is-cut")
  }
}
