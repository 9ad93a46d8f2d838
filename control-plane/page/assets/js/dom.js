// Descriptions of elements, and patching a document to match them.
//
// A view is a pure function from data to descriptions. `patch` changes only what differs, so focus, selection and scroll survive every update
// of a page that is updated every second. Elements are made with createElement and text with text nodes alone: nothing that a cluster, a
// gateway or a client is called can become markup. Attributes come from an allow-list, links lead within the page only.

/** @typedef {string | number | boolean | null | undefined | VNode} Child */

/**
 * @typedef {object} VNode
 * @property {string} tag    Empty: text.
 * @property {boolean} svg
 * @property {string | undefined} key
 * @property {Props} props
 * @property {VNode[]} children
 * @property {string} text
 */

/** @typedef {(event: any) => void} Listener */

/**
 * @typedef {object} Special
 * @property {string | number} [key]                      Tells siblings apart when they move.
 * @property {Record<string, Listener>} [on]
 * @property {Record<string, string | number>} [style]    Set one by one through the CSSOM, which a policy without inline styles allows.
 * @property {Record<string, unknown>} [prop]             Properties such as `value` and `checked`.
 * @property {(element: any) => void} [made]              Called once, when the element is in the document.
 */

/** @typedef {Special & Record<string, unknown>} Props */

/** @typedef {Record<string, Listener>} Listeners */

/** @type {WeakMap<Node, VNode>} */
const described = new WeakMap();
/** @type {WeakMap<Node, Listeners>} */
const listening = new WeakMap();

/**
 * An HTML element.
 * @param {string} tag
 * @param {Props | null} props
 * @param {...(Child | Child[])} children
 * @returns {VNode}
 */
export function h(tag, props, ...children) {
  return element(tag, false, props, children);
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Props | null} props
 * @param {...(Child | Child[])} children
 * @returns {VNode}
 */
export function s(tag, props, ...children) {
  return element(tag, true, props, children);
}

/**
 * Makes the children of `parent` what is described.
 * @param {Element} parent
 * @param {Child | Child[]} wanted
 */
export function patch(parent, wanted) {
  const focused = document.activeElement;
  children(parent, flatten([wanted]));
  // Where an element had to move in the document, browsers without moveBefore have taken its focus.
  const lost = document.activeElement === null || document.activeElement === document.body;
  if (lost && focused instanceof HTMLElement && focused.isConnected && parent.contains(focused)) focused.focus({ preventScroll: true });
  for (const made of begun.splice(0)) made();
}

/** @param {string} tag @param {boolean} svg @param {Props | null} props @param {(Child | Child[])[]} inner @returns {VNode} */
function element(tag, svg, props, inner) {
  const given = props ?? {};
  const key = given.key === undefined ? undefined : String(given.key);
  return { tag, svg, key, props: given, children: flatten(inner), text: '' };
}

/** @param {(Child | Child[])[]} inner @returns {VNode[]} */
function flatten(inner) {
  /** @type {VNode[]} */
  const out = [];
  for (const child of inner.flat(4)) {
    if (child === null || child === undefined || child === true || child === false || child === '') continue;
    if (typeof child === 'object') out.push(child);
    else out.push({ tag: '', svg: false, key: undefined, props: {}, children: [], text: String(child) });
  }
  return out;
}

/** @param {Element} parent @param {VNode[]} wanted */
function children(parent, wanted) {
  /** @type {Map<string, ChildNode>} */
  const keyed = new Map();
  /** @type {ChildNode[]} */
  const others = [];
  for (const node of parent.childNodes) {
    const key = described.get(node)?.key;
    if (key === undefined) others.push(node);
    else keyed.set(key, node);
  }
  /** @type {ChildNode[]} */
  const nodes = wanted.map((vnode) => {
    let old;
    if (vnode.key === undefined) {
      const at = others.findIndex((node) => alike(node, vnode));
      if (at >= 0) [old] = others.splice(at, 1);
    } else {
      old = keyed.get(vnode.key);
      if (old && !alike(old, vnode)) old = undefined;
      else keyed.delete(vnode.key);
    }
    return old ? renew(old, vnode) : make(vnode);
  });
  for (const node of others) node.remove();
  for (const node of keyed.values()) node.remove();
  /** @type {ChildNode | null} */
  let next = parent.firstChild;
  nodes.forEach((node, at) => {
    if (node === next) {
      next = node.nextSibling;
    } else if (next && next.nextSibling === node && next !== nodes[at + 1]) {
      // One that moved away stands before it: moving that one later leaves all the others where they are.
      place(parent, next, null);
      next = node.nextSibling;
    } else {
      place(parent, node, next);
    }
    const made = wanted[at]?.props.made;
    if (made && !announced.has(node)) {
      announced.add(node);
      begun.push(() => made(node));
    }
  });
}

/** What is to be called once everything is in the document. @type {(() => void)[]} */
const begun = [];
/** @type {WeakSet<Node>} */
const announced = new WeakSet();

/** @param {Element} parent @param {ChildNode} node @param {ChildNode | null} before */
function place(parent, node, before) {
  const mover = /** @type {{ moveBefore?: (node: Node, before: Node | null) => void }} */ (/** @type {unknown} */ (parent));
  if (mover.moveBefore && node.isConnected && parent.isConnected) mover.moveBefore(node, before);
  else parent.insertBefore(node, before);
}

/** @param {Node} node @param {VNode} vnode */
function alike(node, vnode) {
  const was = described.get(node);
  return was !== undefined && was.tag === vnode.tag && was.svg === vnode.svg;
}

/** @param {VNode} vnode @returns {ChildNode} */
function make(vnode) {
  if (vnode.tag === '') {
    const text = document.createTextNode(vnode.text);
    described.set(text, vnode);
    return text;
  }
  const made = vnode.svg ? document.createElementNS('http://www.w3.org/2000/svg', vnode.tag) : document.createElement(vnode.tag);
  described.set(made, vnode);
  children(made, vnode.children);
  properties(made, {}, vnode.props);
  return made;
}

/** @param {ChildNode} node @param {VNode} vnode @returns {ChildNode} */
function renew(node, vnode) {
  const was = described.get(node);
  if (was === vnode) return node;
  described.set(node, vnode);
  if (vnode.tag === '') {
    if (was?.text !== vnode.text) node.nodeValue = vnode.text;
    return node;
  }
  const old = /** @type {HTMLElement | SVGElement} */ (node);
  children(old, vnode.children);
  properties(old, was?.props ?? {}, vnode.props);
  return node;
}

const SPECIAL = new Set(['key', 'on', 'style', 'prop', 'made']);
const ATTRIBUTES = new Set(
  (
    'class id role title for type name href scope colspan rowspan headers tabindex disabled open hidden lang dir placeholder autocomplete ' +
    'spellcheck min max step value datetime list selected inputmode maxlength required autofocus checked rows cols method closedby summary ' +
    'viewBox width height x y x1 y1 x2 y2 cx cy r rx ry d points transform text-anchor dominant-baseline preserveAspectRatio focusable ' +
    'marker-end marker-start orient markerWidth markerHeight refX refY markerUnits pathLength patternUnits'
  ).split(' '),
);

/** @param {HTMLElement | SVGElement} element @param {Props} was @param {Props} now */
function properties(element, was, now) {
  for (const name of Object.keys(was)) {
    if (!SPECIAL.has(name) && !given(now[name])) element.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(now)) {
    if (SPECIAL.has(name) || was[name] === value || !given(value)) continue;
    if (!ATTRIBUTES.has(name) && !/^(aria|data)-[a-z-]+$/.test(name)) throw new Error(`attribute ${name} is not allowed`);
    if (name === 'href' && !/^#/.test(String(value))) throw new Error('links lead within the page');
    element.setAttribute(name, value === true ? '' : String(value));
  }
  styles(element, was.style ?? {}, now.style ?? {});
  for (const [name, value] of Object.entries(now.prop ?? {})) {
    const target = /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (element));
    if (target[name] !== value) target[name] = value;
  }
  listeners(element, now.on);
}

/** @param {unknown} value */
function given(value) {
  return value !== undefined && value !== null && value !== false;
}

/** @param {HTMLElement | SVGElement} element @param {Record<string, string | number>} was @param {Record<string, string | number>} now */
function styles(element, was, now) {
  for (const name of Object.keys(was)) if (!(name in now)) element.style.removeProperty(name);
  for (const [name, value] of Object.entries(now)) if (was[name] !== value) element.style.setProperty(name, String(value));
}

/** @param {HTMLElement | SVGElement} element @param {Listeners | undefined} wanted */
function listeners(element, wanted) {
  const current = listening.get(element);
  if (!wanted) {
    if (current) for (const type of Object.keys(current)) delete current[type];
    return;
  }
  const live = current ?? {};
  if (!current) listening.set(element, live);
  for (const type of Object.keys(live)) if (!(type in wanted)) delete live[type];
  for (const [type, listener] of Object.entries(wanted)) {
    const mark = `${type} listens`;
    if (!(mark in live)) {
      Object.defineProperty(live, mark, { value: true, enumerable: false });
      // One listener for the life of the element: which function it calls is looked up when it is needed.
      element.addEventListener(type, (event) => listening.get(element)?.[type]?.(event));
    }
    live[type] = listener;
  }
}
