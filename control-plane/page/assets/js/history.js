// What was seen since the page was opened: a line says at a glance whether something just changed.

import { total } from './model.js';

/** @import { State } from './contract.js' */

/** @typedef {{ at: number, value: number | null }[]} Series */

// Two minutes, a point per second, however often states come.
const POINTS_MAX = 120;
const APART_MS = 900;
// As many services as a state names.
const SERVICES_MAX = 1_000;

export class History {
  constructor() {
    /** @type {Series} */
    this.requests = [];
    /** @type {Series} */
    this.success = [];
    /** @type {Map<string, Series>} */
    this.services = new Map();
  }

  /** @param {State} state */
  note(state) {
    const at = state.takenUnixMs;
    const sum = total(state);
    push(this.requests, at, sum.requestsPerSecond);
    push(this.success, at, sum.success);
    for (const service of state.services.slice(0, SERVICES_MAX)) {
      const series = this.services.get(service.name) ?? [];
      push(series, at, service.rate?.requestsPerSecond ?? null);
      this.services.set(service.name, series);
    }
    if (this.services.size > SERVICES_MAX) {
      const there = new Set(state.services.map((service) => service.name));
      for (const name of this.services.keys()) if (!there.has(name)) this.services.delete(name);
    }
  }
}

/** @param {Series} series @param {number} at @param {number | null} value */
function push(series, at, value) {
  const last = series.at(-1);
  if (last && at - last.at < APART_MS) {
    last.value = value;
    return;
  }
  series.push({ at, value });
  if (series.length > POINTS_MAX) series.shift();
}
