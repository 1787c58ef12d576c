// Remembers which part of the source each text node shows.

const places = new WeakMap()

/** Record that a text node shows the source from start to end.
 * @param {Text} node */
export function keepPlace(node, start, end) {
  places.set(node, { start, end })
}

/** The range of the source that a node shows, if any.
 * @param {Node} node @returns {{start: number, end: number}|undefined} */
export function placeOf(node) {
  return places.get(node)
}

/** The position in the source of an offset in a text node. A node whose text differs from
 * its source, such as an entity, counts as a whole. */
export function sourceAt(node, offset) {
  const place = places.get(node)
  if (!place) return undefined
  if (node.length === place.end - place.start) return place.start + offset
  return offset === 0 ? place.start : place.end
}
