// The laid-out tree: finds nodes by position without looking at all of them.
//
// The idea: the nodes of a column are ordered from top to bottom, and so are their lines,
// so a binary search finds the visible part of a column.

import { layout } from "./layout.js"
import { sizer } from "./measure.js"

export const PORT = 20 // below the top of a node, where lines arrive and leave

export class Plane {
  /** @param {import("../model/tree.js").Tree} tree @param {Set<string>} folded */
  constructor(tree, folded) {
    const size = sizer()
    this.sizes = new Map()
    const sizeOf = (node) => {
      const made = size(node)
      this.sizes.set(node, made)
      return made
    }
    const childrenOf = (node) => (folded.has(node.id) ? [] : node.children)
    const laid = layout(tree.get(tree.root), childrenOf, sizeOf)
    Object.assign(this, laid) // boxes, columns, width, height
    this.folded = folded
    this.lefts = this.columns.map((column) => this.boxes.get(column[0]).x)
    // The unfolded parents of each column, in order
    this.parents = this.columns.map((column) =>
      column.filter((node) => childrenOf(node).length),
    )
  }

  box(node) {
    return this.boxes.get(node)
  }

  has(node) {
    return this.boxes.has(node)
  }

  /** The nodes that overlap a rectangle. */
  *within({ x, y, right, bottom }) {
    for (let depth = this.#depthAt(x); depth < this.columns.length; depth++) {
      if (this.lefts[depth] > right) return
      const column = this.columns[depth]
      const begin = first(column, (node) => this.#bottom(node) >= y)
      for (let i = begin; i < column.length; i++) {
        if (this.boxes.get(column[i]).y > bottom) break
        yield column[i]
      }
    }
  }

  /** The nodes whose lines to their children may overlap a rectangle. */
  *branching({ x, y, right, bottom }) {
    for (let depth = this.#depthAt(x); depth < this.parents.length; depth++) {
      if (this.lefts[depth] > right) return
      const parents = this.parents[depth]
      const begin = first(
        parents,
        (node) => this.boxes.get(node.children.at(-1)).y + PORT >= y,
      )
      for (let i = begin; i < parents.length; i++) {
        if (this.boxes.get(parents[i]).y > bottom) break
        yield parents[i]
      }
    }
  }

  /** The node at a point, or undefined. */
  at(x, y) {
    for (const node of this.within({ x, y, right: x, bottom: y })) {
      const box = this.boxes.get(node)
      if (x <= box.x + box.w) return node
    }
    return undefined
  }

  /** The node `steps` below one in its column. */
  besides(node, steps) {
    const column = this.columns[this.boxes.get(node).depth]
    return column[column.indexOf(node) + steps]
  }

  #depthAt(x) {
    const after = first(this.lefts, (left) => left > x)
    return Math.max(0, after - 1)
  }

  #bottom(node) {
    const box = this.boxes.get(node)
    return box.y + box.h
  }
}

/** The index of the first item for which a condition holds; it holds for all after it. */
function first(items, holds) {
  let low = 0
  let high = items.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (holds(items[middle])) high = middle
    else low = middle + 1
  }
  return low
}
