// Converts positions between JavaScript strings and Python's.
//
// The idea: Python counts code points, the browser UTF-16 units, so positions differ by
// the surrogate pairs before them. Most texts have none and need no table.

/** Converts positions in one text. */
export class CodePoints {
  /** @param {string} text */
  constructor(text) {
    this.pairs = [] // units at which a pair starts
    if (/[\ud800-\udbff]/.test(text)) {
      for (const match of text.matchAll(/[\ud800-\udbff][\udc00-\udfff]/g)) {
        this.pairs.push(match.index)
      }
    }
  }

  /** The code points before a UTF-16 position; inside a pair, those before the pair.
   * @param {number} unit @returns {number} */
  point(unit) {
    return unit - count(this.pairs, (at) => at < unit)
  }

  /** The UTF-16 position after so many code points.
   * @param {number} point @returns {number} */
  unit(point) {
    const pairs = this.pairs
    return point + count(pairs, (at, i) => at - i < point)
  }
}

/** The `CodePoints` of a text; remembers the last one, as the same text comes often. */
export function pointsOf(text) {
  if (pointsOf.text !== text) {
    pointsOf.text = text
    pointsOf.points = new CodePoints(text)
  }
  return pointsOf.points
}

/** How many items fulfil a condition that holds up to some item and not after it. */
function count(items, holds) {
  let low = 0
  let high = items.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (holds(items[middle], middle)) low = middle + 1
    else high = middle
  }
  return low
}
