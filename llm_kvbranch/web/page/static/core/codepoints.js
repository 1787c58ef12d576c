// Where a place of a JavaScript string is in Python's, and back.
//
// The idea: Python counts code points, the browser UTF-16 units, so places differ by
// the surrogate pairs before them. Most texts have none and need no table.

/** Converts places within one text. */
export class CodePoints {
  /** @param {string} text */
  constructor(text) {
    this.pairs = [] // units at which a pair begins
    if (/[\ud800-\udbff]/.test(text)) {
      for (const match of text.matchAll(/[\ud800-\udbff][\udc00-\udfff]/g)) {
        this.pairs.push(match.index)
      }
    }
  }

  /** Code points before a UTF-16 place; inside a pair, those before the pair.
   * @param {number} unit @returns {number} */
  point(unit) {
    return unit - count(this.pairs, (at) => at < unit)
  }

  /** The UTF-16 place that has so many code points before it.
   * @param {number} point @returns {number} */
  unit(point) {
    const pairs = this.pairs
    return point + count(pairs, (at, i) => at - i < point)
  }
}

/** How many items at the beginning fulfil a condition that holds up to some item. */
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
