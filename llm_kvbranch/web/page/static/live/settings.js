// How answers are to be made: what of it is said, the model's own values are used else.

import { h } from "../core/dom.js"
import { kept } from "../core/kept.js"

const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1 },
  { name: "max_tokens", label: "Tokens at most", min: 1, max: 100_000, step: 1 },
  { name: "seed", label: "Seed", min: 0, max: 4_294_967_294, step: 1 },
]

/** What to send with a request. */
export function sampling() {
  const known = kept.get("sampling", {})
  return Object.fromEntries(
    FIELDS.filter(({ name }) => typeof known[name] === "number").map(({ name }) => [
      name,
      known[name],
    ]),
  )
}

/** Fields for it, which keep what is put into them. */
export function samplingFields() {
  const known = sampling()
  return FIELDS.map(({ name, label, min, max, step }) => {
    const field = h("input", {
      type: "number",
      name,
      min,
      max,
      step,
      placeholder: "model's",
      value: known[name] ?? "",
    })
    field.addEventListener("change", () => {
      const value =
        field.value.trim() === "" || !field.checkValidity() ? null : Number(field.value)
      kept.set("sampling", { ...sampling(), [name]: value })
    })
    return h("label.field", {}, h("span", {}, label), field)
  })
}
