// Sends requests, reads the answers as they stream in, and hands over to the log.
//
// The idea: a requested answer appears in the tree at once, and is replaced by the log's as
// soon as that has it. Until then nothing that was typed is lost.

import { ApiError } from "../core/api.js"
import { counted } from "../core/format.js"
import { keepDraft, draft } from "../model/drafts.js"
import { Lanes } from "./lanes.js"
import { Run } from "../model/run.js"
import { sampling } from "./settings.js"
import { events } from "./sse.js"

const STREAMS = 5 // at once: browsers open six connections to a server; one stays free
const TICK = 250 // ms
const UNTIL_LOGGED = [0, 100, 200, 400, 800, 1600] // ms before each look into the log

export class Runs {
  /** @param {import("../model/state.js").State} state @param {(text: string) => void} say announces */
  constructor(state, say) {
    this.state = state
    this.say = say
    this.lanes = new Lanes(STREAMS)
  }

  /** Request answers.
   * @param {object} about what to show of each, see `Run`
   * @param {{route: string, body: object, n?: number, place?: string}} request `place` is
   *   where the draft was typed */
  start(about, { route, body, n = 1, place = null }) {
    const group = { runs: [], abort: new AbortController(), route, body, n, place, about }
    for (let i = 0; i < n; i++) {
      const run = new Run(about)
      run.group = group
      group.runs.push(run)
      this.state.runs.add(run)
      this.state.tree.addRun(run)
    }
    this.state.group = n > 1 ? group : null
    this.state.emit("tree", this.state.tree)
    this.state.select(group.runs[0].id, { push: false })
    this.#answer(group)
    return group
  }

  /** Stop an answer and those requested with it. */
  stop(run) {
    run.group.abort.abort()
  }

  /** Repeat a failed request. */
  again(run) {
    const { about, route, body, n, place } = run.group
    const parent = this.#forget(run.group)
    if (parent) this.state.selected = parent
    return this.start(about, { route, body, n, place })
  }

  /** Remove a failed request; its text goes back to where it was typed. */
  discard(run) {
    const { place } = run.group
    if (place && !draft(place)) keepDraft(place, run.question)
    const parent = this.#forget(run.group)
    this.state.emit("tree", this.state.tree)
    if (parent) this.state.select(parent, { push: false })
    this.state.emit("drafts", place)
  }

  #forget(group) {
    const { state } = this
    const isSelected = group.runs.some((run) => run.id === state.selected)
    for (const run of group.runs) {
      state.runs.delete(run)
      if (!run.isLogged) state.tree.remove(run.id)
    }
    if (state.group === group) state.group = null
    return isSelected ? (group.about.parent ?? group.about.back) : null
  }

  async #answer(group) {
    const { route, body, n, abort } = group
    const sent = { ...sampling(), ...body, stream: true, ...(n > 1 ? { n } : {}) }
    let giveBack = () => {}
    this.#tick()
    try {
      giveBack = await this.lanes.take(abort.signal)
      const response = await this.state.api.send(route, sent, abort.signal)
      for await (const event of events(response.body)) this.#take(group, event)
      const short = group.runs.filter((run) => run.isRunning)
      for (const run of short)
        this.#fail(run, new ApiError("The answer was cut off: the server may have stopped"))
    } catch (error) {
      for (const run of group.runs.filter((each) => each.isRunning)) {
        if (abort.signal.aborted) run.status = "stopped"
        else this.#fail(run, error)
      }
    } finally {
      giveBack()
    }
    await this.#settle(group)
  }

  /** Update the seconds shown while a request waits. */
  #tick() {
    clearInterval(this.ticking)
    this.ticking = setInterval(() => {
      const waits = [...this.state.runs].find((run) => run.status === "waiting")
      if (waits) this.state.emit("run", waits)
      else clearInterval(this.ticking)
    }, TICK)
  }

  #take(group, event) {
    if (event.error) throw new ApiError(event.error.message)
    for (const choice of event.choices ?? []) {
      const run = group.runs[choice.index]
      if (run.id === run.key && event.response_id) this.#rename(run, event.response_id)
      const { content, reasoning_content: thinking } = choice.delta ?? {}
      if (content || thinking) {
        if (run.first === null) this.#begin(group, run)
        run.add(content || thinking, !content)
      }
      if (choice.finish_reason) {
        run.status = "done"
        run.facts = { ...withoutNone(event.kvbranch), finish_reason: choice.finish_reason }
      }
      this.state.emit("run", run)
    }
  }

  /** The server has the prompt: its draft is not needed any more. */
  #begin(group, run) {
    if (group.place) keepDraft(group.place, "")
    if (run === group.runs[0]) this.say("Answering")
  }

  #rename(run, id) {
    const { state } = this
    const before = run.id
    run.id = id
    state.tree.rename(before, run)
    if (state.selected === before) state.selected = id
    state.pathIds.delete(before) && state.pathIds.add(id)
    if (state.visited.get(run.parent) === before) state.visited.set(run.parent, id)
    state.emit("renamed", { before, id })
    if (state.selected === id) state.showPath()
  }

  #fail(run, error) {
    run.status = "failed"
    run.error = error
    this.say(`No answer: ${error.message}`)
    this.state.emit("run", run)
  }

  /** Wait until the log has the answers, and show them from there. */
  async #settle(group) {
    const { state } = this
    const done = group.runs.filter(
      (run) => run.status === "done" || (run.status === "stopped" && run.first !== null),
    )
    const empty = group.runs.filter(
      (run) => run.status === "stopped" && run.first === null,
    )
    this.#announce(group)
    if (empty.length === group.runs.length) {
      this.discard(group.runs[0])
      return
    }
    for (const run of empty) {
      state.runs.delete(run)
      state.tree.remove(run.id)
    }
    if (group.about.parent === null) {
      if (done.length) await this.#leaveFor(done[0])
      return
    }
    if (done.length) await this.#untilLogged(done)
  }

  /** Load the tree until it has these answers. */
  async #untilLogged(runs) {
    const { state } = this
    for (const wait of UNTIL_LOGGED) {
      await new Promise((go) => setTimeout(go, wait))
      try {
        await state.loadTree()
      } catch {
        continue // try again
      }
      if (runs.every((run) => run.isLogged)) break
    }
    for (const run of runs) {
      if (run.isLogged) {
        state.runs.delete(run)
        if (!state.turns.has(run.id)) state.turns.set(run.id, run.asTurn()) // for now
      } else if (run.status !== "failed")
        this.#fail(
          run,
          new ApiError("The answer is not in the log. Is logging turned off?"),
        )
    }
    const chosen = runs.find((run) => run.id === state.selected)
    if (chosen?.isLogged) state.emit("logged", chosen)
    await state.loadPath()
  }

  /** A new conversation has a page of its own. */
  async #leaveFor(run) {
    this.state.emit("leave", run)
  }

  #announce(group) {
    const [run] = group.runs
    const words = { done: `Answered: ${counted(run.tokens, "token")}`, stopped: "Stopped" }
    if (words[run.status]) this.say(words[run.status])
  }
}

function withoutNone(facts = {}) {
  return Object.fromEntries(
    Object.entries(facts ?? {}).filter(([, value]) => value !== null),
  )
}
