// The browser's selection as a place in the source of an answer.

import { placeOf, sourceAt } from "../markdown/places.js"

/** @typedef {{answer: HTMLElement, start: number, end: number, range: Range}} Chosen in
 *   UTF-16 units of the answer's source */

/** What is selected of an answer. A selection that reaches beyond the answer counts up to
 * the answer's end.
 * @param {Selection|null} selection @returns {Chosen|null} */
export function chosenIn(selection) {
  if (!selection || selection.isCollapsed || !selection.rangeCount) return null
  const range = selection.getRangeAt(0)
  const answer = answerOf(range)
  if (!answer) return null
  let start
  let end
  const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT)
  for (let node = firstIn(walker, range, answer); node; node = walker.nextNode()) {
    if (isBehind(node, range)) break
    if (!placeOf(node)) continue
    const from = node === range.startContainer ? range.startOffset : 0
    const to = node === range.endContainer ? range.endOffset : node.length
    if (from >= to || !range.intersectsNode(node)) continue
    start ??= sourceAt(node, from)
    end = sourceAt(node, to)
  }
  if (start === undefined || end <= start) return null
  return { answer, start, end, range }
}

function answerOf(range) {
  const element = (node) => (node.nodeType === 1 ? node : node.parentElement)
  const inside = element(range.startContainer)?.closest(".answer")
  if (inside) return inside
  // A selection that starts outside, such as in the margin: the answer that it ends in
  const end = element(range.endContainer)?.closest(".answer")
  if (end) return end
  const all = element(range.commonAncestorContainer)?.querySelectorAll?.(".answer") ?? []
  return [...all].find((each) => range.intersectsNode(each)) ?? null
}

/** Start walking at the selection, not at the start of the answer, which may be long. */
function firstIn(walker, range, answer) {
  if (answer.contains(range.startContainer)) {
    walker.currentNode = range.startContainer
    if (range.startContainer.nodeType === Node.TEXT_NODE) return range.startContainer
    const child = range.startContainer.childNodes[range.startOffset]
    if (child?.nodeType === Node.TEXT_NODE) {
      walker.currentNode = child
      return child
    }
  }
  return walker.nextNode()
}

function isBehind(node, range) {
  return node !== range.endContainer && range.comparePoint(node, 0) > 0
}
