// Dark or light: the system's preference, unless a theme was chosen.

import { h } from "../core/dom.js"
import { icon } from "./icons.js"
import { kept } from "../core/kept.js"

const light = matchMedia("(prefers-color-scheme: light)")

/** The current theme. */
export function theme() {
  return kept.get("theme") ?? (light.matches ? "light" : "dark")
}

function apply() {
  document.documentElement.dataset.theme = theme()
}

/** A button that switches between the themes. @param {() => void} [changed] */
export function themeButton(changed = () => {}) {
  const button = h("button.quiet", { type: "button" })
  const update = () => {
    apply()
    const other = theme() === "dark" ? "light" : "dark"
    button.replaceChildren(icon(other === "light" ? "sun" : "moon"))
    button.setAttribute("aria-label", `Use the ${other} theme`)
    button.title = `Use the ${other} theme (t)`
    changed()
  }
  button.addEventListener("click", () => {
    kept.set("theme", theme() === "dark" ? "light" : "dark")
    update()
  })
  light.addEventListener("change", update)
  update()
  return button
}
