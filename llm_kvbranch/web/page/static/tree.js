// The page of one tree: creates its parts and connects them.
//
// The rooms, from the ground up (tests/test_layers.py checks who imports whom):
//   core      the browser, the server, plain values: nothing about conversations
//   model     what the page shows: the tree, answers in progress, drafts
//   widgets   small elements for any room: icons, badges, menus, dialogs
//   markdown  an answer's text as elements that know their place in it
//   graph     the map of the tree
//   live      asking the model: fields, requests, answers as they stream in
//   path      the conversation from the root to the selected response
//   overlay   the dialogs, one a file
//   page      the page as a whole: top bar, panes, keys, address, actions

import { actions } from "./page/actions.js"
import { Api } from "./core/api.js"
import { h } from "./core/dom.js"
import { icon } from "./widgets/icons.js"
import { sayer } from "./widgets/say.js"
import { Graph } from "./graph/graph.js"
import { Asking } from "./live/asking.js"
import { Composer, readOnly } from "./live/composer.js"
import { Runs } from "./live/runs.js"
import { State } from "./model/state.js"
import { CompareBar } from "./overlay/compare.js"
import { openHelp } from "./overlay/help.js"
import { openSearch } from "./overlay/search.js"
import { bindings, listenToKeys } from "./page/keys.js"
import { Panes } from "./page/panes.js"
import { keepPlace } from "./page/place.js"
import { topbar } from "./page/topbar.js"
import { PathPane } from "./path/pane.js"
import { SelectionToolbar } from "./path/toolbar.js"

const config = JSON.parse(document.getElementById("config").textContent)
const root = document.getElementById("app")

async function start() {
  const api = new Api(config)
  const state = new State(config, api)
  const { element, say, whisper } = sayer()
  const app = { config, api, state, say, asking: new Asking() }
  app.runs = new Runs(state, whisper)
  app.does = actions(app)
  app.pane = new PathPane(state, app.does)
  app.graph = new Graph(state)
  app.panes = new Panes(app.graph.element, app.pane.element)
  app.openSearch = () => openSearch(app)
  app.openHelp = () => openHelp(app.bindings, state.isLive)
  writing(app)
  root.append(topbar(app), app.panes.element, new CompareBar(app).element, element)
  app.bindings = bindings(app)
  listenToKeys(app)
  keepPlace(app)
  // Meanwhile others may have continued it, such as llm in a terminal
  document.addEventListener("visibilitychange", async () => {
    if (document.hidden) return
    await state.loadTree().catch(() => {})
    state.loadPath()
  })
  state.on("problem", (error) => say(error.message, true))
  state.on("leave", (run) => location.assign(api.page(run.id)))
  await read(state)
  state.emit("select", { id: state.selected, before: null, push: false, quietly: true })
  state.emit("path", state.path)
  app.graph.focus()
  globalThis.kvbranch = app // for the browser's console and tests
}

/** Load the tree and the first path at the same time. */
async function read(state) {
  const path = state.readPath(config.id).then(
    () => true,
    () => false, // loaded again below, where an error is shown
  )
  await state.loadTree()
  if (await path) state.showPath()
  else await state.loadPath()
}

/** The parts for writing, where one may ask; a note that the page is read only elsewhere. */
function writing(app) {
  const { state, does, pane } = app
  if (!state.isLive) {
    pane.element.append(readOnly())
    return
  }
  const composer = new Composer(state, does)
  pane.element.append(composer.element)
  app.toolbar = new SelectionToolbar(pane, (mode, chosen) => does.ask(mode, chosen))
  document.body.append(app.toolbar.element)
  app.write = () => {
    app.panes.have("path")
    composer.focus()
  }
}

start().catch((error) => {
  const again = h(
    "button",
    { type: "button", on: { click: () => location.reload() } },
    "Try again",
  )
  root.append(
    h("div.broken", { role: "alert" }, icon("alert"), h("p", {}, error.message), again),
  )
  throw error
})
