// Rows that change places every second cannot be read, let alone be clicked. An order stands for a while, and for as long as somebody is at it.

const STANDS_MS = 5_000;

/** @type {Map<string, { at: number, why: string, keys: string[] }>} */
const orders = new Map();

/**
 * `order()`, or the order before while that stands.
 * @template T
 * @param {string} id               Of the element that shows the list.
 * @param {T[]} items
 * @param {(item: T) => string} key
 * @param {string} why              What the order is made of by choice: with another one it is made anew at once.
 * @param {() => T[]} order
 * @returns {T[]}
 */
export function steady(id, items, key, why, order) {
  const now = performance.now();
  const was = orders.get(id);
  const element = document.getElementById(id);
  const busy = element !== null && element.matches(':hover, :focus-within');
  if (was && was.why === why && (busy || now - was.at < STANDS_MS)) return inOrder(items, was.keys, key);
  const made = order();
  orders.set(id, { at: now, why, keys: made.map(key) });
  return made;
}

/**
 * Items in the order of their keys; those without a place at the end, and places without an item left out.
 * @template T
 * @param {T[]} items
 * @param {string[]} keys
 * @param {(item: T) => string} key
 * @returns {T[]}
 */
export function inOrder(items, keys, key) {
  const rest = new Map(items.map((item) => [key(item), item]));
  /** @type {T[]} */
  const out = [];
  for (const one of keys) {
    const item = rest.get(one);
    if (item === undefined) continue;
    out.push(item);
    rest.delete(one);
  }
  return [...out, ...rest.values()];
}
