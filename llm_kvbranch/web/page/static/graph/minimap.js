// The minimap: the whole tree in a corner, with a frame around the visible part.

import { h, perFrame } from "../core/dom.js"

const WIDTH = 176
const HEIGHT = 108
const MARGIN = 8

export class Minimap {
  /** @param {import("./camera.js").Camera} camera */
  constructor(camera) {
    this.camera = camera
    this.canvas = h("canvas")
    this.view = h("div.minimap-view")
    this.element = h(
      "div.minimap",
      { "aria-hidden": "true", data: { noPan: "" } },
      this.canvas,
      this.view,
    )
    this.drawSoon = perFrame(() => this.#draw())
    const go = (event) => {
      if (event.buttons !== 1) return
      this.element.setPointerCapture(event.pointerId)
      const box = this.element.getBoundingClientRect()
      const ratio = this.element.offsetWidth / box.width // it may be shown smaller
      this.#centre((event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio)
    }
    this.element.addEventListener("pointerdown", go)
    this.element.addEventListener("pointermove", go)
  }

  /** Show a plane. @param {import("./plane.js").Plane} plane */
  show(plane, shown, colours) {
    Object.assign(this, { plane, shown, colours })
    this.scale = Math.min(
      (WIDTH - 2 * MARGIN) / plane.width,
      (HEIGHT - 2 * MARGIN) / plane.height,
      0.12,
    )
    this.left = (WIDTH - plane.width * this.scale) / 2
    this.top = (HEIGHT - plane.height * this.scale) / 2
    this.drawSoon()
    this.follow()
  }

  /** Show where the camera is; hidden where it sees everything. */
  follow() {
    if (!this.plane) return
    const { seen } = this.camera
    const { width, height } = this.plane
    const all = seen.x <= 0 && seen.y <= 0 && seen.right >= width && seen.bottom >= height
    this.element.classList.toggle("is-needless", all)
    const [x, y] = [this.left + seen.x * this.scale, this.top + seen.y * this.scale]
    const clip = (value, most) => Math.max(0, Math.min(most, value))
    const [x1, y1] = [clip(x, WIDTH), clip(y, HEIGHT)]
    const [x2, y2] = [
      clip(x + seen.w * this.scale, WIDTH),
      clip(y + seen.h * this.scale, HEIGHT),
    ]
    const { style } = this.view
    style.transform = `translate(${x1}px, ${y1}px)`
    style.width = `${Math.max(4, x2 - x1)}px`
    style.height = `${Math.max(4, y2 - y1)}px`
  }

  #centre(x, y) {
    const [wx, wy] = [(x - this.left) / this.scale, (y - this.top) / this.scale]
    const { seen } = this.camera
    this.camera.set(wx - seen.w / 2, wy - seen.h / 2)
  }

  #draw() {
    const ratio = devicePixelRatio || 1
    this.canvas.width = WIDTH * ratio
    this.canvas.height = HEIGHT * ratio
    const pen = this.canvas.getContext("2d")
    pen.scale(ratio, ratio)
    const { plane, scale, colours: c, shown } = this
    for (const [node, box] of plane.boxes) {
      const onPath = shown.path.has(node)
      pen.fillStyle = onPath ? c.accent : c["line-strong"]
      const [x, y] = [this.left + box.x * scale, this.top + box.y * scale]
      const [w, tall] = [Math.max(1.5, box.w * scale), Math.max(1, box.h * scale - 0.5)]
      pen.fillRect(x, y, w, tall)
      if (!node.starred) continue
      pen.fillStyle = c.star
      pen.fillRect(x + w - 2, y, 3, 3)
    }
  }
}
