// A conversation's tree: what the log has, and the answers in progress.

/** @typedef {object} Node a node of tree.json, and:
 * @property {string} id
 * @property {?string} parent
 * @property {Node[]} children
 * @property {number} depth
 * @property {import("./run.js").Run} [run] its answer in progress */

export class Tree {
  /** @param {{root: string, current: ?string, nodes: object[]}} data
   * @param {Iterable<import("./run.js").Run>} runs */
  constructor(data, runs = []) {
    this.root = data.root
    this.current = data.current
    /** @type {Map<string, Node>} */
    this.nodes = new Map()
    for (const node of data.nodes) this.#add({ ...node })
    for (const run of runs) this.addRun(run)
  }

  #add(node) {
    const parent = this.nodes.get(node.parent)
    node.children = []
    node.depth = parent ? parent.depth + 1 : 0
    this.nodes.set(node.id, node)
    parent?.children.push(node)
    return node
  }

  /** Add an answer in progress, unless the log has it. One that begins a conversation has no
   * place in this tree. */
  addRun(run) {
    const have = this.nodes.get(run.id)
    if (have) {
      run.isLogged = true
      if (run.isRunning) have.run = run
    } else if (run.parent === null || this.nodes.has(run.parent)) this.#add(run.asNode())
  }

  /** Give an answer in progress the id that the server told. */
  rename(before, run) {
    const node = this.nodes.get(before)
    if (!node) return
    this.nodes.delete(before)
    node.id = run.id
    this.nodes.set(run.id, node)
  }

  remove(id) {
    const node = this.nodes.get(id)
    const siblings = this.nodes.get(node?.parent)?.children
    siblings?.splice(siblings.indexOf(node), 1)
    this.nodes.delete(id)
  }

  /** @returns {Node|undefined} */
  get(id) {
    return this.nodes.get(id)
  }

  parent(id) {
    return this.nodes.get(this.nodes.get(id)?.parent)
  }

  /** The nodes from the root to one. @returns {Node[]} */
  path(id) {
    const path = []
    for (let node = this.get(id); node; node = this.get(node.parent)) path.push(node)
    return path.reverse()
  }

  /** A node and its siblings, oldest first. */
  siblings(id) {
    return this.parent(id)?.children ?? [this.get(id)].filter(Boolean)
  }

  /** How many nodes are below one. */
  below(id) {
    let n = -1
    const waiting = [this.get(id)]
    while (waiting.length) {
      n += 1
      waiting.push(...waiting.pop().children)
    }
    return n
  }
}

/** How a response was reached, as a word: begin, continue, branch, focus, fresh or retry.
 * @param {{verb: ?string, mode: ?string, parent?: ?string}} node */
export function reached(node) {
  if (node.mode === "fresh") return "fresh"
  return node.verb ?? (node.parent ? "continue" : "begin")
}
