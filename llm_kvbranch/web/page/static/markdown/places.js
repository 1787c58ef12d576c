// Where shown text is in the source it was made from.

const places = new WeakMap()

/** Remember that a text node shows the source from start to end.
 * @param {Text} node */
export function keepPlace(node, start, end) {
  places.set(node, { start, end })
}

/** The place of a text node, if it was made from a source.
 * @param {Node} node @returns {{start: number, end: number}|undefined} */
export function placeOf(node) {
  return places.get(node)
}

/** The place in the source of an offset in a text node. One that shows something
 * else than its source, such as an entity, is before it or behind it as a whole. */
export function sourceAt(node, offset) {
  const place = places.get(node)
  if (!place) return undefined
  if (node.length === place.end - place.start) return place.start + offset
  return offset === 0 ? place.start : place.end
}
