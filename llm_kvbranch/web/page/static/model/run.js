// One answer in progress, from the moment it is requested until the log has it.

let counter = 0

/** @typedef {"waiting"|"answering"|"done"|"stopped"|"failed"} Status */

export class Run {
  /** @param {{verb: string, mode?: ?string, parent: ?string, from: string, question: string,
   *   excerpt?: ?string, quoted?: ?string, start?: ?number, end?: ?number}} about `parent` is
   *   its parent in the tree, `from` the response it was asked about */
  constructor(about) {
    this.key = `run-${++counter}`
    this.id = this.key // until the server tells the real one
    Object.assign(
      this,
      { mode: null, excerpt: null, quoted: null, start: null, end: null },
      about,
    )
    /** @type {Status} */
    this.status = "waiting"
    this.reasoning = ""
    this.text = ""
    this.tokens = 0
    this.asked = performance.now()
    this.first = null // when its first piece arrived
    this.facts = null
    /** @type {?import("../core/api.js").ApiError} */
    this.error = null
    this.isLogged = false
    this.group = null
  }

  get isRunning() {
    return this.status === "waiting" || this.status === "answering"
  }

  /** Tokens per second so far. */
  get rate() {
    const seconds = (performance.now() - this.first) / 1000
    return this.first !== null && this.tokens > 1 && seconds > 0
      ? (this.tokens - 1) / seconds
      : null
  }

  /** Add a piece of the answer, or of the thinking before it. */
  add(piece, isThinking = false) {
    this.first ??= performance.now()
    this.status = "answering"
    this[isThinking ? "reasoning" : "text"] += piece
    this.tokens += 1
  }

  /** As a node of the tree. */
  asNode() {
    return {
      id: this.id,
      parent: this.parent,
      thread: null,
      model: null,
      prompt: this.question.slice(0, 200),
      get start() {
        return this.run.text.slice(0, 160)
      },
      get tokens() {
        return { input: null, output: this.run.tokens || null }
      },
      verb: this.verb,
      mode: this.mode,
      excerpt: this.excerpt,
      state: "none",
      why: null,
      nbytes: null,
      slot: null,
      starred: false,
      note: null,
      created: new Date().toISOString(),
      ms: null,
      run: this,
    }
  }

  /** As a turn of a path. */
  asTurn() {
    return {
      id: this.id,
      system: null,
      prompt: this.question,
      question: this.question,
      quoted: this.quoted,
      reasoning: this.reasoning,
      text: this.text,
      cut: null,
      cutBefore:
        this.cutBefore ??
        (this.verb === "branch" && this.mode !== "fresh" ? this.end : null),
      apart: this.mode === "fresh",
      model: null,
      created: null,
      facts: this.facts ?? {},
      calls: [],
      starred: false,
      note: null,
      state: "none",
      nbytes: null,
      children: [],
      run: this,
    }
  }
}
