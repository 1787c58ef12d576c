// The visible cards as elements, created when they come into view and removed when they
// leave it. The selected card and its neighbours always exist, so that keys reach them.

import { h } from "../core/dom.js"
import { fillCard } from "./card.js"

const MARGIN = 160 // around the view, in units of the plane, where cards are kept

export class Cards {
  /** @param {import("../model/state.js").State} state */
  constructor(state) {
    this.state = state
    this.element = h("div.cards", { role: "tree", "aria-label": "Conversation tree" })
    this.shown = new Map() // cards by their node's id
    this.made = new WeakMap() // card to the values that it shows
    state.on("renamed", ({ before, id }) => {
      const card = this.shown.get(before)
      if (!card) return
      this.shown.delete(before)
      this.shown.set(id, card)
      card.id = `card-${id}`
      card.dataset.id = id
    })
  }

  /** Show the cards that the camera sees, or only those around the selected one. */
  sync(camera, plane, isReadable) {
    this.element.style.transform = `scale(${camera.zoom}) translate(${-camera.x}px, ${-camera.y}px)`
    this.element.classList.toggle("is-brief", !isReadable)
    const wanted = new Map()
    for (const node of this.#around(plane)) wanted.set(node.id, node)
    if (isReadable)
      for (const node of plane.within(wider(camera.seen))) wanted.set(node.id, node)
    for (const [id, card] of this.shown) {
      if (wanted.has(id)) continue
      card.remove()
      this.shown.delete(id)
    }
    for (const [id, node] of wanted) if (!this.shown.has(id)) this.#add(node, plane)
  }

  /** Update the cards that have changed. */
  refresh(plane) {
    for (const [id, card] of this.shown) {
      const node = this.state.tree.get(id)
      if (node && plane.has(node)) this.#fill(node, card, plane)
      else {
        card.remove()
        this.shown.delete(id)
      }
    }
  }

  /** The card of a node, if it has one. */
  card(node) {
    return this.shown.get(node.id)
  }

  /** The node of a card. */
  nodeOf(card) {
    return this.state.tree.get(card.dataset.id)
  }

  *#around(plane) {
    const { tree, selected } = this.state
    const node = tree.get(selected) ?? tree.get(tree.root)
    const near = [
      node,
      tree.parent(node?.id),
      ...tree.siblings(node?.id).slice(0, 20),
      ...(node?.children ?? []).slice(0, 20),
    ]
    for (const each of near) if (each && plane.has(each)) yield each
  }

  #add(node, plane) {
    const card = h("div.card", { role: "treeitem", id: `card-${node.id}` })
    this.shown.set(node.id, card)
    this.#fill(node, card, plane)
    this.element.append(card)
  }

  #fill(node, card, plane) {
    const { tree, selected, folded, compared, hits, pathIds } = this.state
    const box = plane.box(node)
    card.style.transform = `translate(${box.x}px, ${box.y}px)`
    card.style.width = `${box.w}px`
    card.style.height = `${box.h}px`
    card.dataset.id = node.id
    const isSelected = node.id === selected
    const siblings = tree.siblings(node.id)
    const isFolded = folded.has(node.id) && node.children.length > 0
    const names = {
      "is-selected": isSelected,
      "is-path": pathIds.has(node.id),
      "is-compared": compared.includes(node.id),
      "is-hit": hits.has(node.id),
      "is-running": Boolean(node.run?.isRunning),
    }
    for (const [name, on] of Object.entries(names)) card.classList.toggle(name, on)
    card.tabIndex = isSelected ? 0 : -1
    card.setAttribute("aria-selected", isSelected)
    card.setAttribute("aria-level", node.depth + 1)
    card.setAttribute("aria-setsize", siblings.length)
    card.setAttribute("aria-posinset", siblings.indexOf(node) + 1)
    if (node.children.length) card.setAttribute("aria-expanded", !isFolded)
    else card.removeAttribute("aria-expanded")
    const about = {
      isCurrent: tree.current === node.id,
      folded: isFolded ? tree.below(node.id) : 0,
      isLive: this.state.isLive,
    }
    const made = [
      node.prompt,
      node.start,
      node.state,
      node.why,
      node.starred,
      node.note,
      about.isCurrent,
      about.folded,
      node.children.length > 0,
      node.run?.status,
      node.run?.tokens,
      box.h,
    ].join("\u0001")
    if (this.made.get(card) === made) return
    this.made.set(card, made)
    fillCard(card, node, plane.sizes.get(node), about)
  }
}

function wider({ x, y, right, bottom }) {
  return { x: x - MARGIN, y: y - MARGIN, right: right + MARGIN, bottom: bottom + MARGIN }
}
