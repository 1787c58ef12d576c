// What can be done, by whatever button or key.

import { copy } from "./core/copy.js"
import { pointsOf } from "./path/excerpts.js"
import { openCompare } from "./overlay/compare.js"
import { openExport } from "./overlay/export.js"
import { openNote } from "./overlay/note.js"
import { openPrune } from "./overlay/prune.js"
import { openRetry } from "./overlay/retry.js"

const EDIT = "A branch beside this one: the old prompt and what came of it stay."
const EDIT_ROOT = "A conversation of its own begins with it. This one stays as it is."

/** @param {object} app the page's parts: state, api, runs, asking, say */
export function actions(app) {
  const { state, api, runs, say } = app
  return {
    ...asking(app),
    leave: () => app.graph.focus(),
    stop: (run) => runs.stop(run),
    again: (run) => runs.again(run),
    discard: (run) => runs.discard(run),
    continueFrom: (id, prompt) => continueFrom(app, id, prompt),
    retry: (id) => openRetry((n) => retry(app, id, n)),
    compare: (ids) => openCompare(app, ids),
    exportFrom: (id) => openExport(app, id),
    note: (id) => openNote(app, id),
    prune: (id) => openPrune(app, id),
    copyAnswer: async (turn) =>
      say((await copy(turn.text)) ? "The answer is copied" : "It could not be copied"),
    copyLink: async (id) => {
      const url = new URL(api.page(id), location.href).href
      say((await copy(url)) ? "The link is copied" : "It could not be copied")
    },
    star: async (id) => {
      const starred = !state.tree.get(id).starred
      await mark(app, id, { starred }, starred ? "Starred" : "No star any more")
    },
  }
}

/** Change a mark of a response and show it. */
export async function mark({ state, api, say }, id, values, words) {
  try {
    const { starred, note } = await api.post("mark", { id, ...values })
    state.change(id, { starred, note })
    say(words)
  } catch (error) {
    say(error.message, true)
  }
}

function continueFrom({ runs }, id, prompt) {
  const place = `continue:${id}`
  runs.start(
    { verb: "continue", parent: id, from: id, question: prompt },
    { route: "continue", body: { message_id: id, prompt }, place },
  )
}

function retry({ state, runs }, id, n) {
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

/** A branch from a part of an answer, or all of it (`range` null), in some mode. */
function branch({ runs }, mode, id, range, excerpt, prompt, place) {
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

/** Another prompt in place of one: from the same point of its parent. */
function edited(app, id, prompt, place) {
  const { state, runs } = app
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
    branch(app, mode, parent, range, excerpt, prompt, place)
  } else if (turn?.cutBefore)
    branch(app, "branch", parent, [0, turn.cutBefore], null, prompt, place)
  else {
    const about = { verb: "continue", parent, from: parent, question: prompt }
    runs.start(about, { route: "continue", body: { message_id: parent, prompt }, place })
  }
}

function asking(app) {
  const { state } = app
  return {
    /** Ask about what is selected of an answer, or else about a response as a whole. */
    ask(mode, chosen = app.toolbar?.chosen) {
      if (!state.isLive) return
      if (chosen) askAbout(app, mode, chosen)
      else if (mode === "focus") app.say("Select some words of an answer first")
      else askWhole(app, mode)
    },
    async edit(id) {
      if (!state.isLive) return
      const view = await viewOf(app, id)
      if (!view) return
      const place = `edit:${id}`
      view.prompt.hidden = true
      app.asking.edit({
        prompt: view.turn.question,
        about: view.about.node.parent === null ? EDIT_ROOT : EDIT,
        place,
        after: view.prompt,
        send: (text) => {
          edited(app, id, text, place)
          app.graph.focus()
        },
        closed: () => (view.prompt.hidden = false),
      })
    },
  }
}

function askAbout(app, mode, { id, start, end, range }) {
  const view = app.pane.view(id)
  const points = pointsOf(view.turn.text)
  const place = [points.point(start), points.point(end)]
  const excerpt = view.turn.text.slice(start, end)
  const last =
    range.endContainer.nodeType === 1
      ? range.endContainer
      : range.endContainer.parentElement
  const block = view.markdown.blocks.findLast(
    ({ element }) => element.contains(last) || range.intersectsNode(element),
  )
  highlight(range)
  app.toolbar.hide()
  document.getSelection().removeAllRanges()
  app.asking.open({
    mode,
    excerpt,
    place: `ask:${id}:${place}`,
    after: block?.element ?? view.answer,
    send: (chosen, text) => {
      branch(app, chosen, id, place, excerpt, text, `ask:${id}:${place}`)
      app.graph.focus()
    },
    closed: () => highlight(null),
  })
}

/** The view of what is selected, which may have to be read first. */
async function viewOf({ state, pane }, id) {
  if (!pane.view(id)) await state.loadPath()
  return pane.view(id)
}

async function askWhole(app, mode) {
  const id = app.state.selected
  const view = await viewOf(app, id)
  if (!view || view.about.node.run) return
  app.asking.open({
    mode,
    excerpt: null,
    place: `ask:${id}`,
    after: view.foot,
    send: (chosen, text) => {
      branch(app, chosen, id, null, null, text, `ask:${id}`)
      app.graph.focus()
    },
  })
}

/** Keep something looking selected while one types elsewhere. */
function highlight(range) {
  if (!globalThis.Highlight || !CSS.highlights) return
  if (range) CSS.highlights.set("asked-about", new Highlight(range.cloneRange()))
  else CSS.highlights.delete("asked-about")
}
