// Shows an answer as Markdown, also while it grows.
//
// The idea: added text can change only the last blocks. So when a source has grown, its last
// two blocks are parsed and rendered again, and the others stay.

import { h } from "../core/dom.js"
import { blocksOf } from "./blocks.js"
import { Painter } from "./painter.js"
import { render } from "./render.js"

const UNSURE = 2 // last blocks, which more text may change

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

  /** Show a source with its marks, and where it is cut off.
   * @param {string} source
   * @param {{marks?: Mark[], cut?: ?number}} [about] positions in UTF-16 units */
  show(source, { marks = [], cut = null } = {}) {
    const same = cut === this.cut && JSON.stringify(marks) === JSON.stringify(this.marks)
    if (same && source === this.source) return
    const grown = same && source.startsWith(this.source)
    this.marks = marks
    this.cut = cut
    this.source = source
    this.draw(grown ? Math.max(0, this.blocks.length - UNSURE) : 0)
  }

  /** The text nodes with their positions, in order. */
  pieces() {
    return this.blocks.flatMap((block) => block.pieces)
  }

  draw(keep) {
    const from = keep ? this.blocks[keep].at : 0
    const old = this.blocks.splice(keep)
    for (const block of blocksOf(this.source, from)) {
      const paint = new Painter(this.source, this.marks, this.cut)
      const element = render(block, paint)
      const before = old.shift()?.element // replaced where it is
      if (before) before.replaceWith(element)
      else this.element.append(element)
      this.blocks.push({ at: block.at, element, pieces: paint.pieces })
    }
    for (const { element } of old) element.remove()
  }
}
