// Sampling options. Only those that are set are sent; the rest is the model's default.

import { h } from "../core/dom.js"
import { kept } from "../core/kept.js"

const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1 },
  { name: "max_tokens", label: "Maximum tokens", min: 1, max: 100_000, step: 1 },
  { name: "seed", label: "Seed", min: 0, max: 4_294_967_294, step: 1 },
]

/** The options to send with a request. */
export function sampling() {
  const known = kept.get("sampling", {})
  return Object.fromEntries(
    FIELDS.filter(({ name }) => typeof known[name] === "number").map(({ name }) => [
      name,
      known[name],
    ]),
  )
}

/** Fields for the options, which keep their values. */
export function samplingFields() {
  const known = sampling()
  return FIELDS.map(({ name, label, min, max, step }) => {
    const field = h("input", {
      type: "number",
      name,
      min,
      max,
      step,
      placeholder: "default",
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
