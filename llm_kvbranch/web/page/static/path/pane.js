// The conversation from the root to the selected response, one turn after the other.

import { h, perFrame } from "../core/dom.js"
import { reached } from "../model/tree.js"
import { reachedIcon } from "../widgets/icons.js"
import { SiblingRow } from "./row.js"
import { TurnView } from "./turn.js"

const NEAR = 80 // pixels from the end that still count as the end

export class PathPane {
  /** @param {import("../model/state.js").State} state @param {object} does see page/actions.js */
  constructor(state, does) {
    this.state = state
    this.does = does
    this.views = new Map()
    this.turns = h("div.turns")
    this.beyond = h("nav.beyond", { "aria-label": "Continuations" })
    this.scroller = h("div.path-scroll", { tabindex: "-1" }, this.turns, this.beyond)
    this.element = h("section.path", { "aria-label": "Conversation" }, this.scroller)
    this.row = new SiblingRow(this)
    this.updateSoon = perFrame(() => this.#live())
    this.slow = 0
    this.isDrawn = false
    this.#follow()
  }

  #follow() {
    const { state } = this
    state.on("select", () => (this.arriving = true))
    state.on("path", () => this.render())
    state.on("tree", () => this.state.path && this.render())
    state.on("node", () => this.state.path && this.render())
    state.on("run", () => this.updateSoon())
    state.on("renamed", ({ before, id }) => {
      const view = this.views.get(before)
      if (!view) return
      this.views.delete(before)
      this.views.set(id, view)
    })
    this.element.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-select]")
      if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return
      event.preventDefault()
      state.select(link.dataset.select)
    })
    this.scroller.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.scroller
      this.atEnd = scrollHeight - scrollTop - clientHeight < NEAR
    })
  }

  /** The address of a node's page. */
  pageOf(node) {
    return this.state.api.page(node.id)
  }

  /** The view of a turn, if it is shown. */
  view(id) {
    return this.views.get(id)
  }

  render() {
    const { path, tree, selected } = this.state
    if (!path) return
    const shown = path.turns.filter((turn) => tree.get(turn.id))
    const inRow = this.row.turns(shown)
    const alone = inRow.length ? shown.slice(0, -1) : shown
    const wanted = new Set([...alone, ...inRow].map((turn) => turn.id))
    for (const [id, view] of this.views) {
      if (wanted.has(id)) continue
      view.element.remove()
      this.views.delete(id)
    }
    const elements = alone.map((turn, index) =>
      this.#place(turn, index, alone[index - 1], turn.id === selected),
    )
    if (inRow.length) elements.push(this.row.show(inRow, alone.length, alone.at(-1)))
    arrange(this.turns, elements)
    this.turns.classList.toggle("is-partial", !path.isWhole)
    this.#drawBeyond()
    if (path.isWhole && !this.isDrawn) performance.mark("kvbranch:path")
    this.isDrawn ||= path.isWhole
    if (this.arriving && path.isWhole) this.#arrive()
  }

  #place(turn, index, before, isLast) {
    const node = this.state.tree.get(turn.id)
    const view = this.viewFor(turn.id)
    view.update(turn, { node, index, before, isLast })
    return view.element
  }

  viewFor(id) {
    if (!this.views.has(id)) this.views.set(id, new TurnView(this))
    return this.views.get(id)
  }

  /** Draw links to the selected response's children. */
  #drawBeyond() {
    const node = this.state.tree.get(this.state.selected)
    const children = node?.children ?? []
    const key = JSON.stringify(
      children.map((child) => [
        child.id,
        child.prompt,
        child.starred,
        child.verb,
        child.mode,
      ]),
    )
    if (key === this.beyond.dataset.key) return
    this.beyond.dataset.key = key
    const links = children.map((child) => {
      const word = reached(child)
      return h(
        "a",
        {
          href: this.pageOf(child),
          class: `beyond-link is-${word}`,
          data: { select: child.id },
        },
        reachedIcon(word),
        h("span", { dir: "auto" }, child.prompt || word),
      )
    })
    const title =
      children.length === 1 ? "Continues with" : `Continues in ${children.length} branches`
    this.beyond.replaceChildren(...(links.length ? [h("h2", {}, title), ...links] : []))
    this.beyond.hidden = !links.length
  }

  /** Bring the newly selected turn into view. */
  #arrive() {
    this.arriving = false
    const view = this.views.get(this.state.selected)
    if (!view) return
    const { node } = view.about
    const element = this.row.isShown ? this.row.element : view.element
    const isComing = node.run?.isRunning
    const { scroller } = this
    if (isComing) scroller.scrollTop = scroller.scrollHeight
    else if (view.about.index === 0) scroller.scrollTop = 0
    else {
      const at = element.getBoundingClientRect().top - scroller.getBoundingClientRect().top
      scroller.scrollTop += at - 12
    }
    this.atEnd = isComing || this.atEnd
  }

  /** Show what has arrived of running answers; less often where drawing takes long. */
  #live() {
    const now = performance.now()
    if (now < this.slow) {
      this.updateSoon()
      return
    }
    let isShown = false
    for (const view of this.views.values()) {
      const { run } = view.about.node
      if (!run || run.isLogged) continue
      isShown = true
      view.update(run.asTurn(), view.about)
    }
    if (!isShown) return
    if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight
    const took = performance.now() - now
    this.slow = took > 8 ? now + 5 * took : 0
  }

  /** Scroll to where a turn branches off from its parent, and focus that place. */
  showExcerpt(id) {
    const parent = this.state.tree.parent(id)
    const link = this.views
      .get(parent?.id)
      ?.element.querySelector(`.leaf[data-select="${CSS.escape(id)}"]`)
    if (!link) return
    link.scrollIntoView({ block: "center" })
    link.focus({ preventScroll: true })
  }

  /** Scroll by so many heights of the view. */
  scroll(pages) {
    this.scroller.scrollBy({ top: pages * this.scroller.clientHeight })
  }
}

/** Make these elements a parent's children, in this order, moving as few as possible. */
function arrange(parent, elements) {
  const wanted = new Set(elements)
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove()
  elements.forEach((element, i) => {
    if (parent.children[i] !== element)
      parent.insertBefore(element, parent.children[i] ?? null)
  })
}
