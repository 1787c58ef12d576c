// Pointer and wheel on the map: drag, zoom, pinch, tap.

const STILL = 4 // pixels that the pointer may move in a tap
const LINE = 16 // pixels of a line, for wheels that count lines

/** Move a camera by the pointers and the wheel on an element.
 * @param {HTMLElement} element
 * @param {import("./camera.js").Camera} camera
 * @param {{tap: (event: PointerEvent, x: number, y: number) => void}} does */
export function listen(element, camera, does) {
  wheel(element, camera)
  const pointers = new Map()
  let travelled = 0

  const local = (event) => {
    const box = element.getBoundingClientRect()
    return { x: event.clientX - box.left, y: event.clientY - box.top }
  }

  element.addEventListener("pointerdown", (event) => {
    if (event.button > 1 || event.target.closest("[data-no-pan]")) return
    if (pointers.size === 0) travelled = 0
    pointers.set(event.pointerId, local(event))
    camera.stop()
  })

  // A tap focuses a card, the start of a drag must not
  element.addEventListener("mousedown", (event) => {
    if (!event.target.closest("[data-no-pan]")) event.preventDefault()
  })

  element.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId)
    if (!before) return
    const now = local(event)
    travelled += Math.hypot(now.x - before.x, now.y - before.y)
    if (travelled <= STILL) return
    hold(element, event.pointerId)
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1]
    if (other) pinch(camera, before, now, other)
    else camera.pan(before.x - now.x, before.y - now.y)
    pointers.set(event.pointerId, now)
  })

  const end = (event) => {
    if (!pointers.delete(event.pointerId)) return
    element.classList.remove("is-held")
    const { x, y } = local(event)
    if (event.type === "pointerup" && travelled <= STILL) does.tap(event, x, y)
  }
  element.addEventListener("pointerup", end)
  element.addEventListener("pointercancel", end)
}

function hold(element, pointer) {
  if (!element.hasPointerCapture(pointer)) element.setPointerCapture(pointer)
  element.classList.add("is-held")
}

function pinch(camera, before, now, other) {
  const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y)
  const middle = (point) => ({ x: (point.x + other.x) / 2, y: (point.y + other.y) / 2 })
  const [from, to] = [middle(before), middle(now)]
  camera.pan(from.x - to.x, from.y - to.y)
  camera.zoomBy(distance(now) / Math.max(1, distance(before)), to.x, to.y)
}

function wheel(element, camera) {
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault()
      const unit =
        event.deltaMode === 1 ? LINE : event.deltaMode === 2 ? element.clientHeight : 1
      let [dx, dy] = [event.deltaX * unit, event.deltaY * unit]
      const box = element.getBoundingClientRect()
      if (event.ctrlKey || event.metaKey) {
        const step = Math.max(-60, Math.min(60, dy))
        camera.zoomBy(
          Math.exp(-step / 180),
          event.clientX - box.left,
          event.clientY - box.top,
        )
        return
      }
      if (event.shiftKey && !dx) [dx, dy] = [dy, 0]
      camera.pan(dx, dy)
    },
    { passive: false },
  )
}
