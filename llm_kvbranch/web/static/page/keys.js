// The keyboard: what each key does, for those who press it and for the help.

import { isTyping } from "../core/dom.js"
import { closeMenu } from "../overlay/menu.js"

/** @param {object} app */
export function bindings(app) {
  const { state, does, graph, pane, panes } = app
  const selected = () => state.selected
  const go = (node) => node && state.select(node.id, { by: "key" })
  const [walk, act, view] = ["Walk the tree", "Do something here", "The page"]
  return [
    { group: walk, keys: ["h", "ArrowLeft"], about: "To the parent", act: () => go(state.tree.parent(selected())) },
    { group: walk, keys: ["l", "ArrowRight"], about: "To the child last gone to", act: () => go(nextChild(state)) },
    { group: walk, keys: ["j", "ArrowDown"], about: "To the next sibling", act: () => go(beside(app, 1)) },
    { group: walk, keys: ["k", "ArrowUp"], about: "To the sibling before", act: () => go(beside(app, -1)) },
    { group: walk, keys: ["g", "Home"], about: "To the root", act: () => go(state.tree.get(state.tree.root)) },
    { group: walk, keys: ["G", "End"], about: "To the end of this branch", act: () => go(end(state)) },
    { group: walk, keys: [" "], about: "Fold what is below, or unfold it", act: () => state.fold(selected()) },
    { group: walk, keys: ["Z"], about: "Fold all that is not on this path", act: () => state.foldOthers() },
    { group: act, keys: ["Enter", "i"], about: "Write: go on from here", live: true, act: () => app.write() },
    { group: act, keys: ["b"], about: "Branch from what is selected, or from here", live: true, act: () => ask(app, "branch") },
    { group: act, keys: ["f"], about: "Focus on what is selected", live: true, act: () => ask(app, "focus") },
    { group: act, keys: ["a"], about: "Ask fresh about what is selected", live: true, act: () => ask(app, "fresh") },
    { group: act, keys: ["r"], about: "Retry: other answers, side by side", live: true, act: () => does.retry(selected()), logged: true },
    { group: act, keys: ["e"], about: "Edit the prompt", live: true, act: () => (panes.have("path"), does.edit(selected())), logged: true },
    { group: act, keys: ["s"], about: "Star", live: true, act: () => state.mayWrite && does.star(selected()), logged: true },
    { group: act, keys: ["n"], about: "Note", live: true, act: () => state.mayWrite && does.note(selected()), logged: true },
    { group: act, keys: ["c"], about: "Take among those to compare", act: () => state.compare(selected()) },
    { group: act, keys: ["C"], about: "Compare them, or the siblings", act: () => does.compare(toCompare(state)) },
    { group: act, keys: ["x"], about: "Prune", live: true, act: () => state.mayWrite && does.prune(selected()), logged: true },
    { group: act, keys: ["y"], about: "Copy a link", act: () => does.copyLink(selected()), logged: true },
    { group: act, keys: ["o"], about: "Export", act: () => does.exportFrom(selected()), logged: true },
    { group: view, keys: ["/"], about: "Search", act: () => app.openSearch() },
    { group: view, keys: ["+", "="], about: "Zoom in", act: () => graph.zoom(1.25) },
    { group: view, keys: ["-"], about: "Zoom out", act: () => graph.zoom(0.8) },
    { group: view, keys: ["0"], about: "Show the whole tree", act: () => graph.fit() },
    { group: view, keys: ["."], about: "Go to what is selected", act: () => graph.centre() },
    { group: view, keys: ["d"], about: "Scroll the conversation down", act: () => pane.scroll(0.5) },
    { group: view, keys: ["u"], about: "and up", act: () => pane.scroll(-0.5) },
    { group: view, keys: ["1", "2", "3"], about: "Map, both, conversation", act: (key) => panes.show({ 1: "graph", 2: "both", 3: "path" }[key]) },
    { group: view, keys: ["t"], about: "Dark or light", act: () => app.themeButton.click() },
    { group: view, keys: ["?"], about: "These keys", act: () => app.openHelp() },
    { group: view, keys: ["Escape"], about: "Stop the answer, or close what is open", act: () => escape(app) },
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
  return node.children.find((child) => child.id === visited.get(selected)) ?? node.children[0]
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
  const all = (inGroup ?? tree.siblings(selected)).filter((node) => !node.run || node.run.isLogged)
  const alike = all.filter((node) => node.prompt === prompt)
  const others = (alike.length > 1 ? alike : all).map((node) => node.id).filter((id) => id !== selected)
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
