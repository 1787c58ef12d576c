// Elements without markup: whatever is shown here was typed by somebody or made by a
// model, so it becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg"

/** An element.
 * @param {string} name tag, then classes: "div.turn.is-last"
 * @param {Object<string, any>} [props] attributes; `on` holds listeners, `data` a dataset;
 *   null, undefined and false leave one out
 * @param {...(Node|string|null|false|undefined|Array)} children
 * @returns {HTMLElement} */
export function h(name, props = {}, ...children) {
  const [tag, ...classes] = name.split(".")
  const element = document.createElement(tag)
  if (classes.length) element.className = classes.join(" ")
  for (const [key, value] of Object.entries(props)) set(element, key, value)
  append(element, children)
  return element
}

function set(element, key, value) {
  if (value === null || value === undefined || value === false) return
  if (key === "on") {
    for (const [event, listener] of Object.entries(value)) {
      element.addEventListener(event, listener)
    }
  } else if (key === "data") Object.assign(element.dataset, value)
  else if (key === "class") element.className += ` ${value}`
  else if (/^on|^style$|^srcdoc$/.test(key)) throw new Error(`no attribute: ${key}`)
  else element.setAttribute(key, value === true ? "" : String(value))
}

function append(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(element, child)
    else if (child !== null && child !== undefined && child !== false) element.append(child)
  }
}

/** An SVG element. @returns {SVGElement} */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  element.append(...children)
  return element
}

/** A function that runs once per frame however often it is called.
 * @param {() => void} work */
export function perFrame(work) {
  let asked = 0
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0
      work()
    })
  }
}

/** A function that runs when it has not been called for a while. */
export function settled(work, ms) {
  let timer = 0
  return (...given) => {
    clearTimeout(timer)
    timer = setTimeout(() => work(...given), ms)
  }
}

/** Whether things may move by themselves. */
export function mayMove() {
  return !matchMedia("(prefers-reduced-motion: reduce)").matches
}

/** Whether somebody is typing into an element. */
export function isTyping(element) {
  return Boolean(element?.closest?.("input, textarea, select, [contenteditable]"))
}
