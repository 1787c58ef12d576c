// What the page shows: the tree, the selected response and the path to it.
//
// The idea: everything else listens to this and keeps no such state itself. A path is shown
// at once from turns that were loaded before, then brought up to date.

import { Emitter } from "../core/emitter.js"
import { kept } from "../core/kept.js"
import { Tree } from "./tree.js"

const MOST_COMPARED = 4
const SOON = 60 // ms before a path is loaded: more keys may follow

export class State extends Emitter {
  /** @param {object} config @param {import("../core/api.js").Api} api */
  constructor(config, api) {
    super()
    this.config = config
    this.api = api
    this.isLive = Boolean(config.live)
    this.mayWrite = this.isLive && Boolean(config.may_write)
    /** @type {Tree} */
    this.tree = new Tree({ root: config.id, current: null, nodes: [] })
    this.selected = config.id
    this.turns = new Map() // every turn that was loaded, by id
    this.path = null // {id, turns, isWhole} of the selected response, as far as known
    this.folded = new Set()
    this.compared = []
    this.hits = new Set()
    this.visited = new Map() // the last visited child, by parent
    this.runs = new Set()
    this.group = null // the retry whose answers are shown side by side
    this.pathIds = new Set()
    this.treesAsked = 0
    this.treeShown = 0
  }

  /** Load the tree; the selection stays if its response is still there. */
  async loadTree() {
    const asked = ++this.treesAsked
    const data = await this.api.get("tree", { id: this.config.id })
    if (asked < this.treeShown) return // a later request was faster
    this.treeShown = asked
    const isFirst = this.tree.root !== data.root || this.tree.nodes.size === 0
    this.tree = new Tree(data, this.runs)
    if (isFirst) this.folded = new Set(kept.get(`folded:${data.root}`, []))
    if (!this.tree.get(this.selected))
      this.selected = this.tree.get(this.config.id) ? this.config.id : data.root
    this.unfoldTo(this.selected)
    this.#remember()
    this.emit("tree", this.tree)
  }

  /** @param {string} id
   * @param {{push?: boolean, by?: string, quietly?: boolean}} [how] `quietly` leaves the view */
  select(id, { push = true, by = "", quietly = false } = {}) {
    if (!this.tree.get(id)) return
    const before = this.selected
    this.selected = id
    if (!this.group?.runs.some((run) => run.id === id)) this.group = null
    this.unfoldTo(id)
    this.#remember()
    this.emit("select", { id, before, push: push && id !== before, by, quietly })
    this.loadPath(by === "key" ? SOON : 0)
  }

  /** Show the selected answer alone again. */
  closeGroup() {
    this.group = null
    this.showPath()
  }

  #remember() {
    const path = this.tree.path(this.selected)
    this.pathIds = new Set(path.map((node) => node.id))
    path.forEach((node, i) => i && this.visited.set(path[i - 1].id, node.id))
  }

  /** Load the path to the selected response, and show what is known of it meanwhile. */
  async loadPath(delay = 0) {
    clearTimeout(this.asking?.timer)
    this.asking?.abort.abort()
    this.showPath()
    const asking = { abort: new AbortController(), timer: 0 }
    this.asking = asking
    const logged = this.tree.path(this.selected).filter((node) => !isComing(node))
    if (!logged.length) return
    await new Promise((done) => (asking.timer = setTimeout(done, delay)))
    try {
      await this.readPath(logged.at(-1).id, asking.abort.signal)
      if (this.asking === asking) this.showPath()
    } catch (error) {
      if (error.name !== "AbortError") this.emit("problem", error)
    }
  }

  /** Load the turns that lead to a response. */
  async readPath(id, signal) {
    const { turns } = await this.api.get("path", { id }, signal)
    turns.forEach((turn, i) => {
      this.turns.set(turn.id, { ...turn, cutBefore: turns[i - 1]?.cut ?? null })
    })
  }

  /** Show the path to the selected response from the turns already loaded. */
  showPath() {
    const path = this.tree.path(this.selected)
    const turns = path.map((node) =>
      isComing(node) ? node.run.asTurn() : this.turns.get(node.id),
    )
    const isWhole = turns.every(Boolean)
    turns.forEach((turn, i) => {
      if (turn) turns[i] = { ...turn, cut: turns[i + 1]?.cutBefore ?? null }
    })
    this.path = { id: this.selected, turns: turns.filter(Boolean), isWhole }
    this.emit("path", this.path)
  }

  /** Fold or unfold what is below a node. */
  fold(id) {
    if (!this.tree.get(id)?.children.length) return
    if (!this.folded.delete(id)) this.folded.add(id)
    if (this.pathIds.has(id) && this.folded.has(id) && id !== this.selected) this.select(id)
    this.#keepFolded()
    this.emit("folded", id)
  }

  /** Fold everything off the path, or unfold it all. */
  foldOthers() {
    const others = [...this.tree.nodes.values()].filter(
      (node) => node.children.length && !this.pathIds.has(node.id),
    )
    if (this.folded.size) this.folded.clear()
    else for (const node of others) this.folded.add(node.id)
    this.#keepFolded()
    this.emit("folded", null)
  }

  unfoldTo(id) {
    const above = this.tree.path(id).slice(0, -1)
    const hidden = above.filter((node) => this.folded.delete(node.id))
    if (!hidden.length) return
    this.#keepFolded()
    this.emit("folded", null)
  }

  #keepFolded() {
    kept.set(`folded:${this.tree.root}`, this.folded.size ? [...this.folded] : null)
  }

  /** Add a node to the comparison, or remove it. */
  compare(id) {
    const without = this.compared.filter((each) => each !== id)
    if (without.length < this.compared.length) this.compared = without
    else if (!isComing(this.tree.get(id)))
      this.compared = [...without, id].slice(-MOST_COMPARED)
    this.emit("compared", this.compared)
    this.emit("node", null)
  }

  clearCompared() {
    this.compared = []
    this.emit("compared", this.compared)
    this.emit("node", null)
  }

  /** Apply a change of the log to a node. */
  change(id, values) {
    const [node, turn] = [this.tree.get(id), this.turns.get(id)]
    const resized = node && Boolean(node.note) !== Boolean(values.note ?? node.note)
    if (node) Object.assign(node, values)
    if (turn) Object.assign(turn, values)
    this.emit(resized ? "tree" : "node", node)
    this.showPath()
  }
}

/** Whether a node is still missing from the log. */
export function isComing(node) {
  return Boolean(node?.run) && !node.run.isLogged
}
