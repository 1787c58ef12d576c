// The keyboard: what each key does, for those who press it and for the help.

import { isTyping } from "../core/dom.js"
import { closeMenu } from "../overlay/menu.js"

/** Every binding. Those that are `live` are for those who may ask, those that are `logged`
 * for responses that are in the log.
 * @param {object} app
 * @returns {{group: string, keys: string[], about: string, act: (key: string) => void,
 *   live?: boolean, logged?: boolean}[]} */
export function bindings(app) {
  const group = (name, all) => all.map((each) => ({ group: name, ...each }))
  return [
    ...group("Walk the tree", walking(app)),
    ...group("Do something here", acting(app)),
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
    bind(["h", "ArrowLeft"], "To the parent", () => go(state.tree.parent(state.selected))),
    bind(["l", "ArrowRight"], "To the child last gone to", () => go(nextChild(state))),
    bind(["j", "ArrowDown"], "To the next sibling", () => go(beside(app, 1))),
    bind(["k", "ArrowUp"], "To the sibling before", () => go(beside(app, -1))),
    bind(["g", "Home"], "To the root", () => go(state.tree.get(state.tree.root))),
    bind(["G", "End"], "To the end of this branch", () => go(end(state))),
    bind(["Space"], "Fold what is below, or unfold it", () => state.fold(state.selected)),
    bind(["Z"], "Fold all that is not on this path", () => state.foldOthers()),
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
    bind(["Enter", "i"], "Write: go on from here", () => app.write(), live),
    bind(
      ["b"],
      "Branch from what is selected, or from here",
      () => ask(app, "branch"),
      live,
    ),
    bind(["f"], "Focus on what is selected", () => ask(app, "focus"), live),
    bind(["a"], "Ask fresh about what is selected", () => ask(app, "fresh"), live),
    bind(["r"], "Retry: other answers, side by side", here(does.retry), logged),
    bind(["e"], "Edit the prompt", edit, logged),
    bind(["s"], "Star", change(does.star), logged),
    bind(["n"], "Note", change(does.note), logged),
    bind(["c"], "Take among those to compare", () => state.compare(state.selected)),
    bind(["C"], "Compare them, or the siblings", () => does.compare(toCompare(state))),
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
    bind(["."], "Go to what is selected", () => graph.centre()),
    bind(["d"], "Scroll the conversation down", () => pane.scroll(0.5)),
    bind(["u"], "and up", () => pane.scroll(-0.5)),
    bind(["1", "2", "3"], "Map, both, conversation", (key) => panes.show(views[key])),
    bind(["t"], "Dark or light", () => app.themeButton.click()),
    bind(["?"], "These keys", () => app.openHelp()),
    bind(["Escape"], "Stop the answer, or close what is open", () => escape(app)),
  ]
}

/** Have the keyboard do what the bindings say. @param {object} app */
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

/** Whether a key belongs to what has the focus. */
function isForOthers({ key, target }) {
  const isControl = target.closest?.("button, a, summary, [role=menuitem]")
  if (isControl && (key === "Enter" || key === " ")) return true
  // Text that can be scrolled by keys
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

/** The sibling beside what is selected, or else the next one in its column. */
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

/** Those that were chosen, or else the siblings: those with the same prompt, if any. */
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
