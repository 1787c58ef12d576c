// The comparison: two to four answers side by side, with their differences marked.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { reached } from "../model/tree.js"
import { openDialog, problem } from "../widgets/dialog.js"
import { icon, reachedIcon } from "../widgets/icons.js"

/** @param {object} app @param {string[]} ids */
export async function openCompare(app, ids) {
  const { api, state } = app
  if (ids.length < 2) {
    app.say("Choose at least two responses: press c, or Shift-click in the map")
    return
  }
  const body = h(
    "div.compare",
    { tabindex: "0", role: "region", "aria-label": "Answers side by side" },
    h("p.waiting", {}, "Comparing…"),
  )
  const shared = h("span.compare-shared")
  const clear = h(
    "button.quiet",
    {
      type: "button",
      on: {
        click: () => {
          dialog.close()
          state.clearCompared()
        },
      },
    },
    "Choose others",
  )
  const dialog = openDialog({
    title: "Compare",
    name: "compare",
    body: [body],
    foot: [shared, h("span.space"), clear],
  })
  try {
    const found = await api.get("compare", { id: ids })
    body.replaceChildren(...found.columns.map((each, i) => column(app, each, i, dialog)))
    body.style.setProperty("--columns", found.columns.length)
    const turns = counted(found.shared, "turn")
    shared.textContent = found.shared
      ? `${turns} in common before these`
      : "No turns in common"
  } catch (error) {
    body.replaceChildren(problem(error))
  }
}

function column({ state, api }, { id, question, model, pieces }, i, dialog) {
  const node = state.tree.get(id)
  const open = h("a.button", { href: api.page(id) }, icon("continue"), "Open")
  open.addEventListener("click", (event) => {
    if (!node || event.ctrlKey || event.metaKey || event.shiftKey) return
    event.preventDefault()
    dialog.close()
    state.select(id)
  })
  const word = node ? reached(node) : null
  const text = h(
    "div.compare-text",
    { dir: "auto" },
    pieces.map((piece) =>
      piece.sign === "+" ? h(i ? "ins" : "mark.differs", {}, piece.text) : piece.text,
    ),
  )
  return h(
    "article",
    { "aria-label": `Answer ${i + 1}` },
    h(
      "header",
      {},
      h("span.compare-number", {}, `${i + 1}`),
      word && h("span", { class: `reached is-${word}` }, reachedIcon(word), word),
      h("span.space"),
      open,
    ),
    h("p.compare-question", { dir: "auto" }, question),
    text,
    model && h("p.facts", {}, h("span", {}, model.replace(/^kvllama\//, ""))),
  )
}

/** The bar with the responses chosen for comparison. */
export class CompareBar {
  constructor(app) {
    this.app = app
    this.element = h("div.compare-bar", { role: "status", hidden: true })
    app.state.on("compared", () => this.update())
  }

  update() {
    const { state } = this.app
    const n = state.compared.length
    this.element.hidden = n === 0
    const go = h(
      "button.primary",
      {
        type: "button",
        disabled: n < 2,
        on: { click: () => openCompare(this.app, state.compared) },
      },
      icon("columns"),
      n < 2 ? "Choose another" : `Compare ${n}`,
    )
    const clear = h(
      "button.quiet",
      {
        type: "button",
        "aria-label": "Clear the comparison",
        on: { click: () => state.clearCompared() },
      },
      icon("close"),
    )
    this.element.replaceChildren(
      h("span", {}, `${counted(n, "response")} to compare`),
      go,
      clear,
    )
  }
}
