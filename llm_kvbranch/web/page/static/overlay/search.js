// The search dialog: responses by their words, in this tree or in all conversations.

import { h, settled } from "../core/dom.js"
import { since } from "../core/format.js"
import { icon } from "../widgets/icons.js"
import { kept } from "../core/kept.js"
import { openDialog, problem } from "../widgets/dialog.js"

/** @param {object} app */
export function openSearch(app) {
  new Search(app).open()
}

class Search {
  constructor(app) {
    this.app = app
    this.results = []
    this.at = 0
    this.everywhere = kept.get("search-everywhere", false)
    this.input = h("input", {
      type: "text",
      placeholder: "Search prompts and answers",
      "aria-label": "Search",
      role: "combobox",
      "aria-expanded": "true",
      "aria-controls": "search-results",
      "aria-autocomplete": "list",
      autocomplete: "off",
      spellcheck: "false",
    })
    this.list = h("ul.results", {
      id: "search-results",
      role: "listbox",
      "aria-label": "Results",
    })
    this.says = h("p.search-says", { role: "status" })
    this.scope = h("button.scope", {
      type: "button",
      title: "Switch (Tab)",
      on: { click: () => this.#switch() },
    })
    const soon = settled(() => this.#ask(), 110)
    this.input.addEventListener("input", soon)
    this.input.addEventListener("keydown", (event) => this.#key(event))
  }

  open() {
    this.#showScope()
    this.dialog = openDialog({
      title: "Search",
      name: "search",
      isTitled: false,
      body: [
        h("div.search-field", {}, icon("search"), this.input, this.scope),
        this.says,
        this.list,
      ],
      closed: () => {
        this.app.state.hits = new Set()
        this.app.state.emit("node", null)
      },
    })
    this.input.focus()
  }

  #switch() {
    this.everywhere = !this.everywhere
    kept.set("search-everywhere", this.everywhere)
    this.#showScope()
    this.#ask()
    this.input.focus()
  }

  #showScope() {
    this.scope.textContent = this.everywhere ? "All conversations" : "This tree"
  }

  async #ask() {
    this.asking?.abort()
    this.asking = new AbortController()
    const { state, api } = this.app
    const q = this.input.value.trim()
    if (!q) return this.#show([], "")
    try {
      const root = this.everywhere ? null : state.tree.root
      const { results } = await api.get("search", { q, root }, this.asking.signal)
      const words = results.length
        ? ""
        : this.everywhere
          ? "Nothing found"
          : "Nothing found in this tree. Press Tab to search all conversations."
      return this.#show(results, words)
    } catch (error) {
      if (error.name === "AbortError") return undefined
      this.list.replaceChildren()
      return this.says.replaceChildren(problem(error))
    }
  }

  #show(results, words) {
    const { state } = this.app
    this.results = results
    this.at = 0
    this.says.textContent = words
    state.hits = new Set(results.map((each) => each.id))
    state.emit("node", null)
    this.list.replaceChildren(...results.map((result, i) => this.#item(result, i)))
    this.#mark()
  }

  #item(result, i) {
    const elsewhere = result.root !== this.app.state.tree.root
    const item = h(
      "li",
      { role: "option", id: `result-${i}`, "aria-selected": "false" },
      h("span.result-prompt", { dir: "auto" }, result.prompt),
      h(
        "span.result-facts",
        {},
        elsewhere ? h("span", {}, "another conversation") : null,
        result.created ? h("time", {}, since(result.created)) : null,
      ),
      h("span.result-snippet", { dir: "auto" }, marked(result.snippet, result.hits)),
    )
    item.addEventListener("click", () => this.#go(i))
    item.addEventListener("pointermove", () => i !== this.at && this.#move(i))
    return item
  }

  #move(to) {
    if (!this.results.length) return
    this.at = (to + this.results.length) % this.results.length
    this.#mark()
  }

  #mark() {
    ;[...this.list.children].forEach((item, i) =>
      item.setAttribute("aria-selected", i === this.at),
    )
    const item = this.list.children[this.at]
    item?.scrollIntoView({ block: "nearest" })
    if (item) this.input.setAttribute("aria-activedescendant", item.id)
    else this.input.removeAttribute("aria-activedescendant")
  }

  #key(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp")
      this.#move(this.at + (event.key === "ArrowDown" ? 1 : -1))
    else if (event.key === "Enter") this.#go(this.at)
    else if (event.key === "Tab" && !event.shiftKey) this.#switch()
    else return
    event.preventDefault()
  }

  #go(i) {
    const result = this.results[i]
    if (!result) return
    const { state, api } = this.app
    if (!state.tree.get(result.id)) {
      location.assign(api.page(result.id))
      return
    }
    this.dialog.close()
    state.select(result.id)
  }
}

/** A snippet with its hits marked; their positions are in code points. */
function marked(text, hits) {
  const points = [...text]
  const parts = []
  let at = 0
  for (const [start, end] of hits ?? []) {
    parts.push(
      points.slice(at, start).join(""),
      h("mark", {}, points.slice(start, end).join("")),
    )
    at = end
  }
  return [...parts, points.slice(at).join("")]
}
