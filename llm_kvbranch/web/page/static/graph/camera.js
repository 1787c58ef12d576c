// The camera: which part of the plane the view shows, and how large.

import { mayMove } from "../core/dom.js"

export const SMALLEST = 0.1
export const LARGEST = 2
const MOVE_MS = 140

export class Camera {
  /** @param {() => void} changed is called after every change */
  constructor(changed) {
    this.x = 0 // of the plane, at the left edge of the view
    this.y = 0
    this.zoom = 1
    this.smallest = SMALLEST
    this.width = 0 // of the view
    this.height = 0
    this.changed = changed
    this.moving = 0
  }

  /** The visible part of the plane. */
  get seen() {
    const [w, h] = [this.width / this.zoom, this.height / this.zoom]
    return { x: this.x, y: this.y, w, h, right: this.x + w, bottom: this.y + h }
  }

  /** The point of the plane at a point of the view. */
  world(x, y) {
    return { x: this.x + x / this.zoom, y: this.y + y / this.zoom }
  }

  set(x, y, zoom = this.zoom) {
    this.stop()
    this.#put(x, y, zoom)
  }

  #put(x, y, zoom) {
    this.x = x
    this.y = y
    this.zoom = Math.min(LARGEST, Math.max(this.smallest, zoom))
    this.changed()
  }

  /** Move by so many pixels of the screen. */
  pan(dx, dy) {
    this.set(this.x + dx / this.zoom, this.y + dy / this.zoom)
  }

  /** Zoom by a factor; the point at (x, y) of the view stays there. */
  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const at = this.world(x, y)
    const zoom = Math.min(LARGEST, Math.max(this.smallest, this.zoom * factor))
    this.set(at.x - x / zoom, at.y - y / zoom, zoom)
  }

  /** Move there with a short animation, or at once where animations are off. */
  go(x, y, zoom = this.zoom) {
    this.stop()
    zoom = Math.min(LARGEST, Math.max(this.smallest, zoom))
    if (!mayMove() || document.hidden) return this.#put(x, y, zoom)
    const [from, begin] = [{ x: this.x, y: this.y, zoom: this.zoom }, performance.now()]
    const step = (now) => {
      const t = Math.min(1, Math.max(0, (now - begin) / MOVE_MS))
      const k = 1 - (1 - t) ** 3
      const at = (a, b) => a + (b - a) * k
      this.moving = t < 1 ? requestAnimationFrame(step) : 0
      this.#put(at(from.x, x), at(from.y, y), at(from.zoom, zoom))
    }
    this.moving = requestAnimationFrame(step)
    return undefined
  }

  stop() {
    cancelAnimationFrame(this.moving)
    this.moving = 0
  }

  /** Show a whole rectangle, no larger than `largest`. */
  fit({ x, y, w, h }, margin = 40, largest = 1) {
    const zoom = Math.min(
      largest,
      (this.width - 2 * margin) / Math.max(1, w),
      (this.height - 2 * margin) / Math.max(1, h),
    )
    this.smallest = Math.min(SMALLEST, zoom) // all of it, however small
    const k = Math.max(this.smallest, zoom)
    this.go(x + w / 2 - this.width / k / 2, y + h / 2 - this.height / k / 2, k)
  }

  /** Bring a box into view with some margin, moving no more than needed. */
  reveal({ x, y, w, h }, margin = 48) {
    const room = (size, view) =>
      Math.max(0, Math.min(margin, (view - size * this.zoom) / 2)) / this.zoom
    const { seen } = this
    const [mx, my] = [room(w, this.width), room(h, this.height)]
    const along = (at, size, from, length, m) => {
      if (at - m < from) return at - m
      if (at + size + m > from + length) return at + size + m - length
      return from
    }
    const nx = along(x, w, seen.x, seen.w, mx)
    const ny = along(y, h, seen.y, seen.h, my)
    if (nx !== seen.x || ny !== seen.y) this.go(nx, ny)
  }
}
