// Requests for answers: what each verb sends, and what the tree shows until it is logged.
//
// The idea: an excerpt is a place in an answer, which the server counts in code points
// and the browser in UTF-16 units. Callers pass code points.

import { pointsOf } from "../core/codepoints.js"

/** @typedef {{state: import("../model/state.js").State, runs: import("./runs.js").Runs}} Page */

/** @param {Page} page @param {string} id @param {string} prompt */
export function continueFrom({ runs }, id, prompt) {
  const place = `continue:${id}`
  runs.start(
    { verb: "continue", parent: id, from: id, question: prompt },
    { route: "continue", body: { message_id: id, prompt }, place },
  )
}

/** Ask for `n` other answers to a response's prompt. @param {Page} page */
export function retry({ state, runs }, id, n) {
  const node = state.tree.get(id)
  const turn = state.turns.get(id)
  const about = {
    verb: "retry",
    parent: node.parent ?? id,
    from: id,
    question: turn?.question ?? node.prompt,
    quoted: turn?.quoted,
  }
  runs.start(
    { ...about, cutBefore: turn?.cutBefore ?? null },
    { route: "retry", body: { message_id: id }, n },
  )
}

/** Branch from part of an answer, or from all of it.
 * @param {Page} page
 * @param {{mode: string, id: string, range: ?[number, number], excerpt: ?string,
 *   prompt: string, place: string}} about `range` is in code points, `place` the draft's */
export function branch({ runs }, { mode, id, range, excerpt, prompt, place }) {
  const [start, end] = range ?? [null, null]
  const about = {
    verb: mode === "focus" ? "focus" : "branch",
    parent: id,
    from: id,
    question: prompt,
    excerpt,
    start,
    end,
  }
  if (mode === "focus") {
    const body = { message_id: id, char_start: start, char_end: end, followup: prompt }
    runs.start({ ...about, quoted: excerpt }, { route: "focus", body, place })
    return
  }
  const branch_mode = mode === "fresh" ? "fresh" : "reuse_kv"
  const body = {
    parent_id: id,
    prompt,
    branch_mode,
    ...(range ? { char_range: range } : {}),
  }
  const quoted = mode === "fresh" ? excerpt : null
  runs.start({ ...about, mode: branch_mode, quoted }, { route: "branch", body, place })
}

/** Send an edited prompt from the same point of its parent; without a parent, it begins a
 * conversation. @param {Page} page */
export function edited(page, id, prompt, place) {
  const { state, runs } = page
  const { parent } = state.tree.get(id)
  const turn = state.turns.get(id)
  if (parent === null) {
    const body = { prompt, ...(turn?.system ? { system: turn.system } : {}) }
    runs.start(
      { verb: null, parent: null, back: id, from: null, question: prompt },
      { route: "generate", body, place },
    )
    return
  }
  const above = state.turns.get(parent)
  const way = above?.children.find((child) => child.id === id)
  const isPlaced = way && way.end !== null && way.end !== undefined
  if (isPlaced && way.verb !== "retry") {
    const points = pointsOf(above.text)
    const range = [way.start ?? 0, way.end]
    const excerpt = above.text.slice(...range.map((each) => points.unit(each)))
    const mode = way.verb === "focus" ? "focus" : way.mode === "fresh" ? "fresh" : "branch"
    branch(page, { mode, id: parent, range, excerpt, prompt, place })
  } else if (turn?.cutBefore) {
    const range = [0, turn.cutBefore]
    branch(page, { mode: "branch", id: parent, range, excerpt: null, prompt, place })
  } else {
    const about = { verb: "continue", parent, from: parent, question: prompt }
    runs.start(about, { route: "continue", body: { message_id: parent, prompt }, place })
  }
}
