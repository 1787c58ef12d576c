// An answer shown as Markdown, which may still be growing.
//
// The idea: text that is added can change what its last blocks are, never those before
// them. So when a source has grown, its last two blocks are read and shown anew.

import { h } from "../core/dom.js"
import { blocksOf } from "./blocks.js"
import { Painter } from "./painter.js"
import { render } from "./render.js"

const UNSURE = 2 // blocks at the end that more text may change

/** @typedef {import("./painter.js").Mark} Mark */

export class MarkdownView {
  constructor() {
    this.element = h("div.markdown")
    this.source = ""
    /** @type {Mark[]} */
    this.marks = []
    this.cut = null
    this.blocks = [] // {at, element, pieces}
  }

  /** Show a source, with what is marked in it and where it is cut off.
   * @param {string} source
   * @param {{marks?: Mark[], cut?: ?number}} [about] places in UTF-16 units */
  show(source, { marks = [], cut = null } = {}) {
    const same = cut === this.cut && JSON.stringify(marks) === JSON.stringify(this.marks)
    if (same && source === this.source) return
    const grown = same && source.startsWith(this.source)
    this.marks = marks
    this.cut = cut
    this.source = source
    this.draw(grown ? Math.max(0, this.blocks.length - UNSURE) : 0)
  }

  /** Pieces of text with their places, in order. */
  pieces() {
    return this.blocks.flatMap((block) => block.pieces)
  }

  draw(keep) {
    const from = keep ? this.blocks[keep].at : 0
    const old = this.blocks.splice(keep)
    for (const block of blocksOf(this.source, from)) {
      const paint = new Painter(this.source, this.marks, this.cut)
      const element = render(block, paint)
      const before = old.shift()?.element // in its place, for others may stand between
      if (before) before.replaceWith(element)
      else this.element.append(element)
      this.blocks.push({ at: block.at, element, pieces: paint.pieces })
    }
    for (const { element } of old) element.remove()
  }
}
