// The bar above everything: where one is, and what is always at hand.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { icon } from "../core/icons.js"
import { themeButton } from "../core/theme.js"
import { Slots } from "./slots.js"

/** @param {object} app @returns {HTMLElement} */
export function topbar(app) {
  const { state, config, panes } = app
  const title = h("h1", { dir: "auto" })
  const size = h("span.tree-size")
  const search = h("button.search-button", { type: "button", "aria-label": "Search", "aria-keyshortcuts": "/", on: { click: () => app.openSearch() } },
    icon("search"), h("span", {}, "Search"), h("kbd", {}, "/"))
  const help = h("button.quiet", { type: "button", "aria-label": "Keys", title: "Keys (?)", on: { click: () => app.openHelp() } }, icon("help"))
  const home = `${config.urls.home}?${new URLSearchParams({ db: config.db })}`
  app.themeButton = themeButton(() => state.emit("theme"))
  state.on("tree", () => {
    const root = state.tree.get(state.tree.root)
    title.textContent = root?.prompt || "Conversation"
    title.title = title.textContent
    size.textContent = counted(state.tree.nodes.size, "response")
    document.title = `${title.textContent.slice(0, 60)} · kvbranch`
  })
  return h("header.topbar", {},
    h("a.home", { href: home, title: "All conversations" }, icon("branch"), h("span", {}, "kvbranch")),
    h("span.slash", { "aria-hidden": "true" }, "/"),
    title, size,
    h("span.space"),
    state.isLive ? new Slots(app).element : h("span.badge", { title: "Nothing is served here: start llm kvbranch serve to go on" }, "read only"),
    panes.switch, search,
    h("a.quiet.button.to-tables", { href: config.database_url, title: "The log's tables in datasette" }, "Tables"),
    app.themeButton, help)
}
