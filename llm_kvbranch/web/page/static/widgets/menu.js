// A button that opens a menu. At most one menu is open.

import { h } from "../core/dom.js"
import { icon } from "./icons.js"

let open = null

/** @param {string} label
 * @param {() => {label: string, icon: string, key?: string, isDanger?: boolean, act: () => void}[]} items */
export function menuButton(label, items, sign = "more") {
  const button = h(
    "button.quiet",
    {
      type: "button",
      "aria-label": label,
      title: label,
      "aria-haspopup": "menu",
      "aria-expanded": "false",
    },
    icon(sign),
  )
  button.addEventListener("click", () => {
    const wasMine = open?.button === button
    closeMenu()
    if (!wasMine) show(button, label, items())
  })
  return button
}

/** Close the open menu. @returns {boolean} whether one was open */
export function closeMenu(refocus = false) {
  if (!open) return false
  const { menu, button, abort } = open
  open = null
  abort.abort()
  menu.remove()
  button.setAttribute("aria-expanded", "false")
  if (refocus) button.focus()
  return true
}

function show(button, label, items) {
  const entries = items.map((item) =>
    h(
      "button",
      {
        type: "button",
        role: "menuitem",
        tabindex: "-1",
        class: item.isDanger ? "is-danger" : "",
      },
      icon(item.icon),
      h("span", {}, item.label),
      item.key ? h("kbd", {}, item.key) : null,
    ),
  )
  const menu = h("div.menu", { role: "menu", "aria-label": label }, entries)
  entries.forEach((entry, i) =>
    entry.addEventListener("click", () => {
      closeMenu(true)
      items[i].act()
    }),
  )
  const abort = new AbortController()
  open = { menu, button, abort }
  button.setAttribute("aria-expanded", "true")
  document.body.append(menu)
  place(menu, button)
  entries[0]?.focus()
  const { signal } = abort
  menu.addEventListener("keydown", (event) => walk(event, entries), { signal })
  addEventListener(
    "pointerdown",
    (event) =>
      !menu.contains(event.target) && !button.contains(event.target) && closeMenu(),
    { signal, capture: true },
  )
  addEventListener("resize", () => closeMenu(), { signal })
  document.addEventListener("scroll", () => closeMenu(), { signal, capture: true })
}

function place(menu, button) {
  const at = button.getBoundingClientRect()
  const { offsetWidth: w, offsetHeight: hgt } = menu
  const below = at.bottom + 4 + hgt < innerHeight
  menu.style.left = `${Math.max(8, Math.min(at.right - w, innerWidth - w - 8))}px`
  menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - 4 - hgt)}px`
}

function walk(event, entries) {
  const at = entries.indexOf(document.activeElement)
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: entries.length - 1 }[
    event.key
  ]
  event.stopPropagation()
  if (event.key === "Escape" || event.key === "Tab") {
    event.preventDefault()
    closeMenu(true)
  } else if (to !== undefined) {
    event.preventDefault()
    entries[(to + entries.length) % entries.length].focus()
  }
}
