// Limits how many requests run at once; the others wait for their turn.

export class Lanes {
  /** @param {number} free how many may run at once */
  constructor(free) {
    this.free = free
    this.waiting = []
  }

  /** Wait for a lane. @param {AbortSignal} signal stops waiting
   * @returns {Promise<() => void>} gives the lane back */
  async take(signal) {
    signal.throwIfAborted()
    if (this.free > 0) this.free -= 1
    else await this.#turn(signal)
    return () => this.#giveBack()
  }

  #turn(signal) {
    return new Promise((go, give) => {
      const mine = { go }
      this.waiting.push(mine)
      signal.addEventListener("abort", () => {
        const at = this.waiting.indexOf(mine)
        if (at >= 0) this.waiting.splice(at, 1)
        give(signal.reason)
      })
    })
  }

  #giveBack() {
    const next = this.waiting.shift()
    if (next) next.go()
    else this.free += 1
  }
}
