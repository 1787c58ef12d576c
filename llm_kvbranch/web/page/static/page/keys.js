// Keyboard shortcuts: one list, for the keyboard and for the help dialog.

import { isTyping } from "../core/dom.js"
import { closeMenu } from "../widgets/menu.js"

/** Every binding. A `live` one works only where one may ask, a `logged` one only on a
 * response that is in the log.
 * @param {object} app
 * @returns {{group: string, keys: string[], about: string, act: (key: string) => void,
 *   live?: boolean, logged?: boolean}[]} */
export function bindings(app) {
  const group = (name, all) => all.map((each) => ({ group: name, ...each }))
  return [
    ...group("Move in the tree", walking(app)),
    ...group("Selected response", acting(app)),
    ...group("The page", showing(app)),
  ]
}

function bind(keys, about, act, more = {}) {
  return { keys: keys.map((key) => (key === "Space" ? " " : key)), about, act, ...more }
}

function walking(app) {
  const { state } = app
  const go = (node) => node && state.select(node.id, { by: "key" })
  return [
    bind(["h", "ArrowLeft"], "Go to the parent", () => go(state.tree.parent(state.selected))),
    bind(["l", "ArrowRight"], "Go to the last visited child", () => go(nextChild(state))),
    bind(["j", "ArrowDown"], "Go to the next sibling", () => go(beside(app, 1))),
    bind(["k", "ArrowUp"], "Go to the previous sibling", () => go(beside(app, -1))),
    bind(["g", "Home"], "Go to the root", () => go(state.tree.get(state.tree.root))),
    bind(["G", "End"], "Go to the end of this branch", () => go(end(state))),
    bind(["Space"], "Fold or unfold what is below", () => state.fold(state.selected)),
    bind(["Z"], "Fold or unfold all other branches", () => state.foldOthers()),
  ]
}

function acting(app) {
  const { state, does, panes } = app
  const live = { live: true }
  const logged = { live: true, logged: true }
  const here = (act) => () => act(state.selected)
  const change = (act) => () => state.mayWrite && act(state.selected)
  const edit = () => {
    panes.have("path")
    does.edit(state.selected)
  }
  return [
    bind(["Enter", "i"], "Write a follow-up", () => app.write(), live),
    bind(
      ["b"],
      "Branch from the selected text, or from here",
      () => ask(app, "branch"),
      live,
    ),
    bind(["f"], "Focus on the selected text", () => ask(app, "focus"), live),
    bind(["a"], "Ask about it in a new context", () => ask(app, "fresh"), live),
    bind(["r"], "Retry: other answers, side by side", here(does.retry), logged),
    bind(["e"], "Edit the prompt", edit, logged),
    bind(["s"], "Star", change(does.star), logged),
    bind(["n"], "Add or edit the note", change(does.note), logged),
    bind(["c"], "Add to the comparison", () => state.compare(state.selected)),
    bind(["C"], "Compare the chosen ones, or the siblings", () =>
      does.compare(toCompare(state)),
    ),
    bind(["x"], "Prune", change(does.prune), logged),
    bind(["y"], "Copy a link", here(does.copyLink), { logged: true }),
    bind(["o"], "Export", here(does.exportFrom), { logged: true }),
  ]
}

function showing(app) {
  const { graph, pane, panes } = app
  const views = { 1: "graph", 2: "both", 3: "path" }
  return [
    bind(["/"], "Search", () => app.openSearch()),
    bind(["+", "="], "Zoom in", () => graph.zoom(1.25)),
    bind(["-"], "Zoom out", () => graph.zoom(0.8)),
    bind(["0"], "Show the whole tree", () => graph.fit()),
    bind(["."], "Go to the selected response", () => graph.centre()),
    bind(["d"], "Scroll the conversation down", () => pane.scroll(0.5)),
    bind(["u"], "Scroll it up", () => pane.scroll(-0.5)),
    bind(["1", "2", "3"], "Show the map, both, or the conversation", (key) =>
      panes.show(views[key]),
    ),
    bind(["t"], "Switch between dark and light", () => app.themeButton.click()),
    bind(["?"], "Show these shortcuts", () => app.openHelp()),
    bind(["Escape"], "Stop the answer, or close what is open", () => escape(app)),
  ]
}

/** Handle keys by the bindings. @param {object} app */
export function listenToKeys(app) {
  const byKey = new Map(app.bindings.flatMap((each) => each.keys.map((key) => [key, each])))
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return
    if (isTyping(event.target) || document.querySelector("dialog[open]")) return
    const binding = byKey.get(event.key)
    if (!binding || isForOthers(event)) return
    event.preventDefault()
    if (binding.live && !app.state.isLive) return
    const run = app.state.tree.get(app.state.selected)?.run
    if (binding.logged && run && !run.isLogged) return
    binding.act(event.key)
  })
}

/** Whether the focused element handles a key itself. */
function isForOthers({ key, target }) {
  const isControl = target.closest?.("button, a, summary, [role=menuitem]")
  if (isControl && (key === "Enter" || key === " ")) return true
  // Elements that keys scroll
  const scrolls = target.closest?.("pre, .table, .path-scroll")
  return Boolean(scrolls) && /^(Arrow|Home|End| )/.test(key)
}

function ask(app, mode) {
  app.panes.have("path")
  app.does.ask(mode)
}

function nextChild({ tree, folded, visited, selected }) {
  const node = tree.get(selected)
  if (!node || folded.has(selected)) return null
  return (
    node.children.find((child) => child.id === visited.get(selected)) ?? node.children[0]
  )
}

/** The node `step` places below the selected one in its column, where siblings are next. */
function beside({ state, graph }, step) {
  const node = state.tree.get(state.selected)
  return node && graph.plane.has(node) ? graph.plane.besides(node, step) : null
}

function end({ tree, visited, selected }) {
  let node = tree.get(selected)
  while (node?.children.length) {
    const last = visited.get(node.id)
    node = node.children.find((child) => child.id === last) ?? node.children[0]
  }
  return node
}

/** The responses chosen for comparison, or else the siblings: first those with the same
 * prompt. */
function toCompare({ compared, group, tree, selected }) {
  if (compared.length >= 2) return compared
  const { prompt } = tree.get(selected)
  const inGroup = group?.runs.map((run) => tree.get(run.id)).filter(Boolean)
  const all = (inGroup ?? tree.siblings(selected)).filter(
    (node) => !node.run || node.run.isLogged,
  )
  const alike = all.filter((node) => node.prompt === prompt)
  const others = (alike.length > 1 ? alike : all)
    .map((node) => node.id)
    .filter((id) => id !== selected)
  return [selected, ...others].slice(0, 4)
}

function escape(app) {
  const { state, does, asking, toolbar, graph } = app
  if (closeMenu(true) || asking.close(true)) return
  if (toolbar?.chosen) {
    document.getSelection().removeAllRanges()
    return
  }
  const run = state.tree.get(state.selected)?.run
  if (run?.isRunning) does.stop(run)
  else if (state.compared.length) state.clearCompared()
  else graph.focus()
}
