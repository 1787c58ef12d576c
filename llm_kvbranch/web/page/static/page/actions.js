// Everything a person can do with a response, by whichever button or key: the one place
// that joins the tree, the conversation, the dialogs and the requests.

import { pointsOf } from "../core/codepoints.js"
import { branch, continueFrom, edited, retry } from "../live/requests.js"
import { openCompare } from "../overlay/compare.js"
import { openExport } from "../overlay/export.js"
import { openNote } from "../overlay/note.js"
import { openPrune } from "../overlay/prune.js"
import { openRetry } from "../overlay/retry.js"
import { copy } from "../widgets/copy.js"

const EDIT = "Creates a branch beside this one. The old prompt and its answers stay."
const EDIT_ROOT = "Starts a new conversation. This one stays as it is."

/** @param {object} app the page's parts: state, api, runs, asking, say */
export function actions(app) {
  const { state, api, runs, say } = app
  const copied = async (text, what) =>
    say((await copy(text)) ? `${what} copied` : "Could not copy")
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
    note: (id) =>
      openNote(id, state.tree.get(id)?.note ?? "", (note) =>
        mark(app, id, { note }, note ? "Note saved" : "Note removed"),
      ),
    prune: (id) => openPrune(app, id),
    copyAnswer: (turn) => copied(turn.text, "Answer"),
    copyLink: (id) => copied(new URL(api.page(id), location.href).href, "Link"),
    star: (id) => {
      const starred = !state.tree.get(id).starred
      return mark(app, id, { starred }, starred ? "Starred" : "Star removed")
    },
  }
}

/** Change a response's star or note in the log, then on the page. */
async function mark({ state, api, say }, id, values, words) {
  try {
    const { starred, note } = await api.post("mark", { id, ...values })
    state.change(id, { starred, note })
    say(words)
  } catch (error) {
    say(error.message, true)
  }
}

function asking(app) {
  const { state } = app
  return {
    /** Ask about the selected text, or else about the selected response as a whole. */
    ask(mode, chosen = app.toolbar?.chosen) {
      if (!state.isLive) return
      if (chosen) askAbout(app, mode, chosen)
      else if (mode === "focus") app.say("Select some text in an answer first")
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
  const inPoints = [points.point(start), points.point(end)]
  const excerpt = view.turn.text.slice(start, end)
  const place = `ask:${id}:${inPoints}`
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
    place,
    after: block?.element ?? view.answer,
    send: (chosen, prompt) => {
      branch(app, { mode: chosen, id, range: inPoints, excerpt, prompt, place })
      app.graph.focus()
    },
    closed: () => highlight(null),
  })
}

/** The view of the selected response, which may have to be loaded first. */
async function viewOf({ state, pane }, id) {
  if (!pane.view(id)) await state.loadPath()
  return pane.view(id)
}

async function askWhole(app, mode) {
  const id = app.state.selected
  const view = await viewOf(app, id)
  if (!view || view.about.node.run) return
  const place = `ask:${id}`
  app.asking.open({
    mode,
    excerpt: null,
    place,
    after: view.foot,
    send: (chosen, prompt) => {
      branch(app, { mode: chosen, id, range: null, excerpt: null, prompt, place })
      app.graph.focus()
    },
  })
}

/** Keep text looking selected while the focus is in a field. */
function highlight(range) {
  if (!globalThis.Highlight || !CSS.highlights) return
  if (range) CSS.highlights.set("asked-about", new Highlight(range.cloneRange()))
  else CSS.highlights.delete("asked-about")
}
