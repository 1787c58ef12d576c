// The size of a node's card, estimated from its texts without creating it.

import { h } from "../core/dom.js"

export const WIDTH = 248
const PADDING = 12 // on each side
const LINE = { excerpt: 20, prompt: 18, answer: 17, note: 19, foot: 20 }
const AROUND = 25 // above and below, with the space between

let pen = null
const widths = new Map()

/** How many lines a text takes, at most `most`. */
function lines(text, font, most = 2) {
  if (!text) return 0
  const key = `${font}|${text.slice(0, 64)}`
  let width = widths.get(key)
  if (width === undefined) {
    pen ??= h("canvas").getContext("2d")
    pen.font = font
    width = pen.measureText(text.slice(0, 64)).width
    widths.set(key, width)
  }
  return Math.min(most, Math.ceil(width / (WIDTH - 2 * PADDING - 2)))
}

/** The size of a node's card, and how many lines of prompt and answer it shows.
 * @param {import("../model/tree.js").Node} node
 * @returns {{w: number, h: number, prompt: number, answer: number}} */
export function sizeOf(node) {
  const family = getComputedStyle(document.body).fontFamily
  return measured(node, family)
}

/** A `sizeOf` for many nodes. */
export function sizer() {
  const { fontFamily } = getComputedStyle(document.body)
  return (node) => measured(node, fontFamily)
}

function measured(node, family) {
  const prompt = Math.max(1, lines(node.prompt, `600 13px ${family}`))
  const answer = node.run?.isRunning ? 2 : lines(node.start, `12.5px ${family}`)
  let height = AROUND + prompt * LINE.prompt + answer * LINE.answer + LINE.foot
  if (node.excerpt) height += LINE.excerpt
  if (node.note) height += LINE.note
  return { w: WIDTH, h: height, prompt, answer }
}
