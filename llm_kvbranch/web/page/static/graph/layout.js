// Where the nodes of a tree go: columns from left to right, one per depth.
//
// The idea: a first child is placed beside its parent, at the same height, so that a
// conversation is a straight line however many branches it has. The branches go below, as
// high as they fit. So a new answer moves nothing above its own line. The edges of a column
// never cross: in each gutter, a parent's lines end above those of the next parent.
//
// A subtree is represented by its contours, its top and bottom at each depth. Placing one
// below another compares only the depths that both have, so the whole layout takes time
// proportional to the number of nodes.

/** @typedef {{x: number, y: number, w: number, h: number, depth: number}} Box */

/** Lay out a tree.
 * @template T
 * @param {T} root
 * @param {(node: T) => T[]} childrenOf
 * @param {(node: T) => {w: number, h: number}} sizeOf
 * @param {{gapX?: number, gapY?: number, cousins?: number}} [gaps]
 * @returns {{boxes: Map<T, Box>, columns: T[][], width: number, height: number}} */
export function layout(root, childrenOf, sizeOf, gaps = {}) {
  const { gapX = 60, gapY = 14, cousins = 22 } = gaps
  const order = parentsFirst(root, childrenOf)
  const boxes = new Map()
  for (const { node, depth } of order) {
    const { w, h } = sizeOf(node)
    boxes.set(node, { x: 0, y: 0, w, h, depth })
  }
  const contours = new Map()
  for (let i = order.length - 1; i >= 0; i--) {
    const { node, children } = order[i]
    contours.set(node, stack(node, children, boxes, contours, gapY, cousins))
    for (const child of children) contours.delete(child)
  }
  return place(order, boxes, gapX)
}

function parentsFirst(root, childrenOf) {
  const order = []
  const waiting = [{ node: root, depth: 0 }]
  while (waiting.length) {
    const { node, depth } = waiting.pop()
    const children = childrenOf(node)
    order.push({ node, depth, children })
    for (let i = children.length - 1; i >= 0; i--) {
      waiting.push({ node: children[i], depth: depth + 1 })
    }
  }
  return order
}

/** The contour of a node and its subtree; the children get positions relative to it.
 * Contours list the deepest level first: a node is added at the end of its child's. */
function stack(node, children, boxes, contours, gapY, cousins) {
  const own = boxes.get(node)
  let all = { top: [], bottom: [], shift: 0 }
  children.forEach((child, i) => {
    const next = contours.get(child)
    const offset = i ? distance(all, next, gapY, cousins) : 0
    boxes.get(child).y = offset
    next.shift += offset
    all = i ? merged(all, next) : next
  })
  all.top.push(-all.shift)
  all.bottom.push(own.h - all.shift)
  return all
}

/** How far below the start of one contour the next has to start. */
function distance(above, below, gapY, cousins) {
  const depth = Math.min(above.top.length, below.top.length)
  let least = -Infinity
  for (let d = 1; d <= depth; d++) {
    const bottom = above.bottom[above.bottom.length - d] + above.shift
    const top = below.top[below.top.length - d] + below.shift
    least = Math.max(least, bottom - top + (d === 1 ? gapY : cousins))
  }
  return least
}

/** One contour around both, in the arrays of the deeper one. */
function merged(above, below) {
  const deeper = above.top.length >= below.top.length ? above : below
  const other = deeper === above ? below : above
  const side = deeper === above ? "bottom" : "top"
  const depth = other.top.length
  for (let d = 1; d <= depth; d++) {
    const value = other[side][depth - d] + other.shift
    deeper[side][deeper[side].length - d] = value - deeper.shift
  }
  return deeper
}

function place(order, boxes, gapX) {
  const columns = []
  const widths = []
  let height = 0
  for (const { node, depth, children } of order) {
    const box = boxes.get(node)
    for (const child of children) boxes.get(child).y += box.y
    if (depth === columns.length) columns.push([])
    columns[depth].push(node)
    widths[depth] = Math.max(widths[depth] ?? 0, box.w)
    height = Math.max(height, box.y + box.h)
  }
  let x = 0
  columns.forEach((column, depth) => {
    for (const node of column) boxes.get(node).x = x
    x += widths[depth] + gapX
  })
  return { boxes, columns, width: Math.max(0, x - gapX), height }
}
