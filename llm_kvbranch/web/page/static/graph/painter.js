// Draws the lines between nodes, and the nodes themselves where cards would be too small.

import { reached } from "../model/tree.js"
import { PORT } from "./plane.js"

export const READABLE = 0.6 // zoom from which nodes are shown as cards
const WORDS = 0.24 // zoom from which nodes show text
const FONT = 21 // size of that text, on the plane
const RADIUS = 9
const GUTTER = 24 // from a node to its children's common line

/** The colours of the current theme. */
export function colours() {
  const style = getComputedStyle(document.documentElement)
  const read = (name) => style.getPropertyValue(`--${name}`).trim()
  const names = [
    "line-strong",
    "accent",
    "surface",
    "raised",
    "line",
    "text",
    "dim",
    "hot",
    "star",
    "canvas",
  ]
  const verbs = ["continue", "branch", "focus", "fresh", "retry", "begin"]
  const all = Object.fromEntries([...names, ...verbs].map((name) => [name, read(name)]))
  return { ...all, family: getComputedStyle(document.body).fontFamily }
}

export class GraphPainter {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas
    this.pen = canvas.getContext("2d")
    this.colours = colours()
    this.wrapped = new WeakMap()
  }

  /** @param {import("./camera.js").Camera} camera @param {import("./plane.js").Plane} plane
   * @param {{path: Set<object>, selected: ?object, hits: Set<string>, compared: string[]}} shown */
  draw(camera, plane, shown) {
    const { pen } = this
    const ratio = devicePixelRatio || 1
    this.#resize(Math.round(camera.width * ratio), Math.round(camera.height * ratio))
    pen.setTransform(1, 0, 0, 1, 0, 0)
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height)
    const k = camera.zoom * ratio
    pen.setTransform(k, 0, 0, k, -camera.x * k, -camera.y * k)
    this.#lines(camera, plane, shown.path)
    if (camera.zoom < READABLE) this.#nodes(camera, plane, shown)
  }

  #resize(width, height) {
    if (this.canvas.width !== width) this.canvas.width = width
    if (this.canvas.height !== height) this.canvas.height = height
  }

  /** For each parent a line down its gutter, and from that a line to each child in the
   * colour of how it was reached. The path is drawn last. */
  #lines(camera, plane, path) {
    const { seen } = camera
    const [trunks, chosen, arms] = [new Path2D(), new Path2D(), new Map()]
    for (const node of plane.branching(seen)) {
      const from = plane.box(node)
      const middle = from.x + from.w + GUTTER
      trunk(trunks, from, plane.box(node.children.at(-1)), middle)
      for (const child of node.children) {
        const to = plane.box(child)
        if (path.has(child)) elbow(chosen, from, to, middle)
        else if (to.y > seen.bottom) break
        if (to.y + PORT < seen.y || to.y > seen.bottom) continue
        const word = reached(child)
        if (!arms.has(word)) arms.set(word, new Path2D())
        arm(arms.get(word), from, to, middle)
      }
    }
    this.#stroke(camera, trunks, chosen, arms)
  }

  #stroke(camera, trunks, chosen, arms) {
    const { pen, colours: c } = this
    pen.lineWidth = Math.max(1.5, 1 / camera.zoom)
    pen.strokeStyle = c["line-strong"]
    pen.stroke(trunks)
    for (const [word, lines] of arms) {
      pen.strokeStyle = c[word === "continue" ? "line-strong" : word]
      pen.setLineDash(word === "fresh" ? [4, 4] : [])
      pen.stroke(lines)
    }
    pen.setLineDash([])
    pen.strokeStyle = c.accent
    pen.lineWidth = Math.max(2.25, 1.6 / camera.zoom)
    pen.stroke(chosen)
  }

  #nodes(camera, plane, shown) {
    const seen = [...plane.within(camera.seen)]
    if (camera.zoom < WORDS) this.#blocks(seen, plane, shown)
    else {
      this.#outlines(seen, plane, shown, camera)
      for (const node of seen) this.#words(node, plane, shown)
    }
    this.#signs(seen, plane, camera)
    this.#ring(shown.selected, plane, camera)
  }

  /** Nodes as plain blocks in the colour of how they were reached. */
  #blocks(seen, plane, shown) {
    const { pen, colours: c } = this
    const kinds = new Map()
    for (const node of seen) {
      const kind = shown.hits.has(node.id)
        ? "star"
        : shown.path.has(node)
          ? "accent"
          : reached(node)
      if (!kinds.has(kind)) kinds.set(kind, new Path2D())
      const { x, y, w, h } = plane.box(node)
      kinds.get(kind).rect(x, y, w, h)
    }
    for (const [kind, shape] of kinds) {
      const isPlain = kind === "continue" || kind === "begin"
      pen.globalAlpha = isPlain || kind === "accent" || kind === "star" ? 1 : 0.6
      pen.fillStyle = c[isPlain ? "line-strong" : kind]
      pen.fill(shape)
    }
    pen.globalAlpha = 1
  }

  #outlines(seen, plane, shown, camera) {
    const { pen, colours: c } = this
    const kinds = { plain: new Path2D(), path: new Path2D(), hit: new Path2D() }
    for (const node of seen) {
      const { x, y, w, h } = plane.box(node)
      const kind = shown.hits.has(node.id) ? "hit" : shown.path.has(node) ? "path" : "plain"
      kinds[kind].roundRect(x, y, w, h, 8)
    }
    pen.lineWidth = 1.2 / camera.zoom
    for (const [kind, shape] of Object.entries(kinds)) {
      pen.fillStyle = kind === "hit" ? c.star : c.surface
      pen.strokeStyle = kind === "path" ? c.accent : c["line-strong"]
      pen.fill(shape)
      pen.stroke(shape)
    }
  }

  #words(node, plane, shown) {
    const { pen, colours: c } = this
    const { x, y, h } = plane.box(node)
    pen.font = `500 ${FONT}px ${c.family}`
    pen.fillStyle = shown.hits.has(node.id) ? c.canvas : c.text
    pen.textBaseline = "alphabetic"
    const lines = this.#wrap(node, Math.max(1, Math.floor((h - 14) / (FONT * 1.22))))
    lines.forEach((line, i) =>
      pen.fillText(line, x + 14, y + 12 + FONT * (0.85 + 1.22 * i)),
    )
  }

  /** The first words of a prompt, wrapped. */
  #wrap(node, most) {
    const known = this.wrapped.get(node)
    if (known?.prompt === node.prompt && known.most === most) return known.lines
    const lines = []
    let line = ""
    for (const word of (node.prompt ?? "").slice(0, 120).split(/\s+/)) {
      const longer = line ? `${line} ${word}` : word.slice(0, 40)
      if (line && this.pen.measureText(longer).width > 218) {
        lines.push(line)
        line = word.slice(0, 40)
        if (lines.length === most) break
      } else line = longer
    }
    if (lines.length < most && line) lines.push(line)
    else if (lines.length === most) lines[most - 1] = lines[most - 1].replace(/.{2}$/, "…")
    this.wrapped.set(node, { prompt: node.prompt, most, lines })
    return lines
  }

  /** Dots on nodes that are starred, in memory or running. */
  #signs(seen, plane, camera) {
    const { pen, colours: c } = this
    const radius = Math.min(14, 3 / camera.zoom)
    for (const node of seen) {
      if (!node.starred && node.state !== "hot" && !node.run?.isRunning) continue
      const { x, y, w } = plane.box(node)
      pen.fillStyle = node.starred ? c.star : c.hot
      pen.beginPath()
      pen.arc(x + w - radius * 0.6, y + radius * 0.6, radius, 0, 7)
      pen.fill()
    }
  }

  #ring(node, plane, camera) {
    if (!node || !plane.has(node)) return
    const { pen, colours: c } = this
    const { x, y, w, h } = plane.box(node)
    const gap = 3 / camera.zoom
    pen.strokeStyle = c.accent
    pen.lineWidth = 2 / camera.zoom
    pen.beginPath()
    pen.roundRect(x - gap, y - gap, w + 2 * gap, h + 2 * gap, 10)
    pen.stroke()
  }
}

/** The common line of a node's children. */
function trunk(path, from, last, middle) {
  path.moveTo(from.x + from.w, from.y + PORT)
  if (last.y - from.y < 1) return
  path.arcTo(middle, from.y + PORT, middle, last.y + PORT, RADIUS)
  path.lineTo(middle, last.y + PORT - RADIUS)
}

/** From that line to a child. */
function arm(path, from, to, middle) {
  if (to.y - from.y < 1) path.moveTo(from.x + from.w, from.y + PORT)
  else {
    path.moveTo(middle, to.y + PORT - RADIUS)
    path.arcTo(middle, to.y + PORT, to.x, to.y + PORT, RADIUS)
  }
  path.lineTo(to.x, to.y + PORT)
}

/** The whole way from a node to a child. */
function elbow(path, from, to, middle) {
  trunk(path, from, to, middle)
  if (to.y - from.y >= 1) path.arcTo(middle, to.y + PORT, to.x, to.y + PORT, RADIUS)
  path.lineTo(to.x, to.y + PORT)
}
