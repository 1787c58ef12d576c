// The two panes: map and conversation side by side, or one of them alone.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"
import { kept } from "../core/kept.js"

const NARROW = matchMedia("(max-width: 760px)")
const [LEAST, MOST] = [0.15, 0.85]
const VIEWS = [
  { name: "graph", label: "Map", sign: "graph", key: "1" },
  { name: "both", label: "Both", sign: "columns", key: "2" },
  { name: "path", label: "Conversation", sign: "text", key: "3" },
]

export class Panes {
  /** @param {HTMLElement} graph @param {HTMLElement} path */
  constructor(graph, path) {
    this.share = kept.get("share", 0.5)
    this.splitter = h("div.splitter", {
      role: "separator",
      tabindex: "0",
      "aria-orientation": "vertical",
      "aria-label": "Width of the map",
      "aria-valuemin": LEAST * 100,
      "aria-valuemax": MOST * 100,
    })
    graph.id ||= "graph-pane"
    this.splitter.setAttribute("aria-controls", graph.id)
    this.element = h("main.panes", {}, graph, this.splitter, path)
    this.buttons = VIEWS.map(({ name, label, sign, key }) =>
      h(
        "button",
        {
          type: "button",
          class: `view-${name}`,
          title: `${label} (${key})`,
          on: { click: () => this.show(name) },
        },
        icon(sign),
        h("span", {}, label),
      ),
    )
    this.switch = h(
      "div.views",
      { role: "group", "aria-label": "View" },
      this.buttons,
    )
    this.#listen()
    this.show(kept.get("panes", "both"), false)
    this.resize(this.share)
  }

  /** @param {"graph"|"both"|"path"} name */
  show(name, keep = true) {
    if (NARROW.matches && name === "both") name = "path"
    this.view = name
    if (keep && !NARROW.matches) kept.set("panes", name)
    this.element.dataset.view = name
    VIEWS.forEach((view, i) =>
      this.buttons[i].setAttribute("aria-pressed", view.name === name),
    )
  }

  /** Make sure that a pane is shown. @param {"graph"|"path"} name */
  have(name) {
    if (this.view !== name && this.view !== "both")
      this.show(NARROW.matches ? name : "both", false)
  }

  resize(share) {
    this.share = Math.min(MOST, Math.max(LEAST, share))
    this.element.style.setProperty("--share", `${this.share * 100}%`)
    this.splitter.setAttribute("aria-valuenow", Math.round(this.share * 100))
  }

  #listen() {
    const { splitter, element } = this
    splitter.addEventListener("pointerdown", (event) => {
      event.preventDefault()
      splitter.setPointerCapture(event.pointerId)
      splitter.classList.add("is-held")
    })
    splitter.addEventListener("pointermove", (event) => {
      if (!splitter.hasPointerCapture(event.pointerId)) return
      const box = element.getBoundingClientRect()
      this.resize((event.clientX - box.left) / box.width)
    })
    splitter.addEventListener("lostpointercapture", () => {
      splitter.classList.remove("is-held")
      kept.set("share", this.share)
    })
    splitter.addEventListener("dblclick", () => {
      this.resize(0.5)
      kept.set("share", null)
    })
    splitter.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.03, ArrowRight: 0.03 }[event.key]
      if (!step) return
      event.preventDefault()
      event.stopPropagation()
      this.resize(this.share + step)
      kept.set("share", this.share)
    })
    NARROW.addEventListener("change", () =>
      this.show(NARROW.matches ? "path" : kept.get("panes", "both"), false),
    )
  }
}
