// What the page knows and what whoever looks has chosen. Views read it; they change it through `change`, which draws again.

import { History } from './history.js';
import { begin } from './live.js';

/** @import { Me, Refusal, State } from './contract.js' */
/** @import { Live } from './live.js' */
/** @import { Shade } from './matrix.js' */
/** @import { Course } from './action.js' */

/** @typedef {{ view: string, name: string | null }} Route */

/**
 * @typedef {object} App
 * @property {'asking' | 'out' | 'in'} session
 * @property {Me | null} me
 * @property {{ busy: boolean, refusal: Refusal | null, why: string, secret: string }} signIn
 * @property {Live} live
 * @property {State | null} state
 * @property {number} receivedAt   When it came, by the monotonic clock.
 * @property {History} history
 * @property {Route} route
 * @property {Course | null} course   The change that is being made.
 * @property {string} said            For screen readers, spoken when it changes.
 * @property {Ui} ui
 */

/**
 * @typedef {object} Ui
 * @property {'system' | 'light' | 'dark'} theme
 * @property {Record<string, number>} widths   Of places whose drawings depend on it.
 * @property {Record<string, string>} find     Search fields, by their id.
 * @property {Set<string>} all                 Lists that are shown whole.
 * @property {{ by: string, down: boolean }} order   Of services.
 * @property {Shade} shade
 * @property {[string, string] | null} over    Pair of clusters that is pointed at.
 * @property {{ kind: string, severity: string }} events
 */

/** @type {App} */
export const app = {
  session: 'asking',
  me: null,
  signIn: { busy: false, refusal: null, why: '', secret: '' },
  live: begin(),
  state: null,
  receivedAt: 0,
  history: new History(),
  route: { view: 'overview', name: null },
  course: null,
  said: '',
  ui: {
    theme: 'system',
    widths: {},
    find: {},
    all: new Set(),
    order: { by: 'name', down: false },
    shade: 'traffic',
    over: null,
    events: { kind: '', severity: '' },
  },
};

/** @type {() => void} */
let draw = () => {};
let waiting = false;

/** @param {() => void} function_ */
export function drawWith(function_) {
  draw = function_;
}

/**
 * Changes what is known, and draws once for all changes of a frame. A page in the background draws nothing.
 * @param {(app: App) => void} how
 */
export function change(how) {
  how(app);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

/** The member's clock, as far as it is known here. */
export function now() {
  return app.state === null ? Date.now() : app.state.takenUnixMs + (performance.now() - app.receivedAt);
}

/** Width of a place in the document, kept up to date. @param {string} id @param {number} otherwise */
export function width(id, otherwise) {
  return app.ui.widths[id] ?? otherwise;
}

/** Watches the width of an element. @param {string} id @returns {(element: Element) => void} */
export function watchWidth(id) {
  return (element) => {
    new ResizeObserver(([entry]) => {
      const wide = Math.floor(entry?.contentRect.width ?? 0);
      if (wide > 0 && app.ui.widths[id] !== wide) change((it) => (it.ui.widths[id] = wide));
    }).observe(element);
  };
}

/** @param {string} id */
export function find(id) {
  return (app.ui.find[id] ?? '').trim().toLowerCase();
}

/** The properties of a search field. @param {string} id @param {string} label */
export function finder(id, label) {
  return { id, label, value: app.ui.find[id] ?? '', change: (/** @type {string} */ value) => change((it) => (it.ui.find[id] = value)) };
}

/** How much of a list is shown. @param {string} id @param {number} most @param {string} noun */
export function amount(id, most, noun) {
  const toggle = () => change((it) => (it.ui.all.delete(id) ? undefined : it.ui.all.add(id)));
  return { most, all: app.ui.all.has(id), toggle, noun };
}
