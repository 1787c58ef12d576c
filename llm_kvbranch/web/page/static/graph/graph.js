// The map of the tree: cards above a canvas with lines, seen through a camera.
//
// The invariant: drawing takes time by what is visible, not by the size of the tree, which
// is laid out again only when its nodes or their sizes change.

import { h, perFrame, settled } from "../core/dom.js"
import { keptInTab } from "../core/kept.js"
import { Camera } from "./camera.js"
import { Cards } from "./cards.js"
import { controls } from "./controls.js"
import { listen } from "./gestures.js"
import { Minimap } from "./minimap.js"
import { colours, GraphPainter, READABLE } from "./painter.js"
import { Plane } from "./plane.js"

export class Graph {
  /** @param {import("../model/state.js").State} state */
  constructor(state) {
    this.state = state
    this.isDrawn = false
    this.drawSoon = perFrame(() => this.draw())
    this.keepSoon = settled(() => this.#keep(), 300)
    this.camera = new Camera(() => {
      this.drawSoon()
      this.minimap.follow()
      this.keepSoon()
    })
    this.cards = new Cards(state)
    this.minimap = new Minimap(this.camera)
    this.canvas = h("canvas", { "aria-hidden": "true" })
    this.element = h(
      "section.graph",
      { "aria-label": "Map of the conversation" },
      this.canvas,
      this.cards.element,
      controls(this),
      this.minimap.element,
    )
    this.painter = new GraphPainter(this.canvas)
    listen(this.element, this.camera, { tap: (event, x, y) => this.#tap(event, x, y) })
    this.#follow()
  }

  #follow() {
    const { state } = this
    state.on("tree", () => this.layOut())
    state.on("folded", () => this.layOut())
    state.on("select", ({ quietly }) => this.selected(quietly))
    state.on("node", () => this.update())
    const refresh = perFrame(() => this.plane && this.cards.refresh(this.plane))
    state.on("run", refresh)
    state.on("theme", () => this.#recolour())
    new ResizeObserver(() => this.#resized()).observe(this.element)
    // Focus on a card that is no longer selected moves to the selected one
    this.cards.element.addEventListener("focusin", (event) => {
      if (event.target.dataset.id !== state.selected) this.focus()
    })
    // A click without a pointer, as from a screen reader
    this.cards.element.addEventListener("click", (event) => {
      const card = event.target.closest(".card")
      if (card && event.detail === 0) state.select(card.dataset.id)
    })
    this.element.addEventListener("scroll", () => this.element.scrollTo(0, 0))
  }

  /** The nodes that are drawn in a special way. */
  get shown() {
    const { tree, selected, hits, compared } = this.state
    return {
      path: new Set(tree.path(selected)),
      selected: tree.get(selected),
      hits,
      compared,
    }
  }

  /** Lay out the tree; the selected node stays where it is on the screen. */
  layOut() {
    const { state, camera } = this
    const node = state.tree.get(state.selected)
    const before = this.plane && node && this.#lastBox(node.id)
    this.plane = new Plane(state.tree, state.folded)
    const after = node && this.plane.box(node)
    if (before && after) {
      camera.set(camera.x + after.x - before.x, camera.y + after.y - before.y)
    }
    this.#measure()
    if (!this.hasView && camera.width) this.#firstView()
    this.update()
  }

  #lastBox(id) {
    for (const [node, box] of this.plane.boxes) if (node.id === id) return box
    return undefined
  }

  /** Show changes that leave all sizes the same. */
  update() {
    if (!this.plane) return
    this.cards.refresh(this.plane)
    this.minimap.show(this.plane, this.shown, this.painter.colours)
    this.drawSoon()
  }

  selected(quietly) {
    if (!this.plane) return
    const node = this.state.tree.get(this.state.selected)
    const hasFocus = this.cards.element.contains(document.activeElement)
    this.update()
    if (!node || !this.plane.has(node) || !this.camera.width) return
    if (!quietly) this.camera.reveal(this.plane.box(node))
    if (hasFocus) this.focus()
  }

  /** Focus the selected card. */
  focus() {
    this.draw()
    const node = this.state.tree.get(this.state.selected)
    if (node) this.cards.card(node)?.focus({ preventScroll: true })
  }

  draw() {
    if (!this.plane || !this.camera.width) return
    this.cards.sync(this.camera, this.plane, this.camera.zoom >= READABLE)
    this.painter.draw(this.camera, this.plane, this.shown)
    if (!this.isDrawn) performance.mark("kvbranch:map")
    this.isDrawn = true
  }

  /** Show the whole tree. */
  fit() {
    const { width: w, height: hgt } = this.plane
    this.camera.fit({ x: 0, y: 0, w, h: hgt })
  }

  /** Centre the selected node, large enough to read. */
  centre() {
    const node = this.state.tree.get(this.state.selected)
    const box = node && this.plane.box(node)
    if (!box) return
    const zoom = Math.max(this.camera.zoom, 0.9)
    const [w, hgt] = [this.camera.width / zoom, this.camera.height / zoom]
    this.camera.go(box.x + box.w / 2 - w / 2, box.y + box.h / 2 - hgt / 2, zoom)
  }

  zoom(factor) {
    this.camera.zoomBy(factor)
  }

  #tap(event, x, y) {
    const fold = event.target.closest("[data-fold]")
    const at = this.camera.world(x, y)
    const node = fold ? this.cards.nodeOf(fold.closest(".card")) : this.plane.at(at.x, at.y)
    if (!node || event.button === 1) return
    if (fold) this.state.fold(node.id)
    else if (event.shiftKey || event.ctrlKey || event.metaKey) this.state.compare(node.id)
    else {
      this.state.select(node.id)
      this.focus()
    }
  }

  #measure() {
    const { clientWidth: width, clientHeight: height } = this.element
    Object.assign(this.camera, { width, height })
  }

  #resized() {
    this.#measure()
    if (!this.camera.width || !this.plane) return
    if (this.hasView) this.camera.changed()
    else this.#firstView()
  }

  /** The first view: the last one in this tab, a small tree as a whole, or the node. */
  #firstView() {
    this.hasView = true
    const { camera, plane, state } = this
    const was = keptInTab.get(`view:${state.tree.root}`)
    const node = state.tree.get(state.selected)
    const box = (node && plane.box(node)) ?? plane.box(state.tree.get(state.tree.root))
    if (was) {
      camera.set(was.x, was.y, was.zoom)
      camera.reveal(box, 0)
      return
    }
    const zoom = Math.min(
      (camera.width - 64) / plane.width,
      (camera.height - 64) / plane.height,
    )
    if (zoom >= 0.7) {
      const k = Math.min(1, zoom)
      camera.set(
        plane.width / 2 - camera.width / k / 2,
        plane.height / 2 - camera.height / k / 2,
        k,
      )
      return
    }
    const k = 0.85
    const within = (at, size, view, length) => {
      const room = view / k
      if (length + 64 < room) return (length - room) / 2
      return Math.max(-32, Math.min(at + size / 2 - room / 2, length + 32 - room))
    }
    const x = within(box.x, box.w, camera.width, plane.width)
    const y = within(box.y, box.h, camera.height, plane.height)
    camera.set(x, y, k)
  }

  #keep() {
    const { x, y, zoom } = this.camera
    keptInTab.set(`view:${this.state.tree?.root}`, { x, y, zoom })
  }

  #recolour() {
    this.painter.colours = colours()
    this.update()
  }
}
