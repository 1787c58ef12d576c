// The top bar: the conversation's title, the slots, and buttons that are always there.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { icon } from "../widgets/icons.js"
import { themeButton } from "../widgets/theme.js"
import { Slots } from "./slots.js"

/** @param {object} app @returns {HTMLElement} */
export function topbar(app) {
  const { state, panes } = app
  app.themeButton = themeButton(() => state.emit("theme"))
  const space = h("span.space")
  const tools = [panes.switch, searchButton(app), tables(app), app.themeButton, help(app)]
  return h("header.topbar", {}, ...place(app), space, served(app), ...tools)
}

/** The link to all conversations, this one's title and size. */
function place({ state, config }) {
  const home = `${config.urls.home}?${new URLSearchParams({ db: config.db })}`
  const title = h("h1", { dir: "auto" })
  const size = h("span.tree-size")
  state.on("tree", () => {
    const root = state.tree.get(state.tree.root)
    title.textContent = root?.prompt || "Conversation"
    title.title = title.textContent
    size.textContent = counted(state.tree.nodes.size, "response")
    document.title = `${title.textContent.slice(0, 60)} · kvbranch`
  })
  const name = h("span", {}, "kvbranch")
  const back = h("a.home", { href: home, title: "All conversations" }, icon("branch"), name)
  return [back, h("span.slash", { "aria-hidden": "true" }, "/"), title, size]
}

function served(app) {
  if (app.state.isLive) return new Slots(app).element
  const title = "Read only: run llm kvbranch serve to continue conversations"
  return h("span.badge", { title }, "read only")
}

function searchButton(app) {
  const about = { type: "button", "aria-label": "Search", "aria-keyshortcuts": "/" }
  const on = { click: () => app.openSearch() }
  const words = [icon("search"), h("span", {}, "Search"), h("kbd", {}, "/")]
  return h("button.search-button", { ...about, on }, ...words)
}

function tables({ config }) {
  const title = "The log's tables in Datasette"
  return h("a.quiet.button.to-tables", { href: config.database_url, title }, "Tables")
}

function help(app) {
  const label = "Keyboard shortcuts"
  const about = { type: "button", "aria-label": label, title: `${label} (?)` }
  return h("button.quiet", { ...about, on: { click: () => app.openHelp() } }, icon("help"))
}
