// A few clusters and what is between them, drawn. More than that is a matrix: lines between eight clusters already hide each other.

import { s } from './dom.js';
import { duration, known, plain, rate, short } from './format.js';
import { linkWords, rateFrom, to } from './model.js';
import { mark, tone } from './bits.js';

/** @import { VNode } from './dom.js' */
/** @import { Cluster, Link, State } from './contract.js' */

/** @typedef {{ cluster: Cluster, x: number, y: number }} Place */

export const CLUSTERS_DRAWN_MAX = 6;

/**
 * @param {State} state
 * @param {number} width    Of the place where it stands, in pixels: text is then as large as everywhere.
 * @returns {VNode}
 */
export function map(state, width) {
  const narrow = width < 560;
  const box = narrow ? { w: 108, h: 62 } : { w: 176, h: 68 };
  const height = state.clusters.length <= 2 ? 170 : narrow ? 360 : 380;
  const places = placed(state.clusters, width, height, box);
  const at = new Map(places.map((place) => [place.cluster.name, place]));
  return s(
    'svg',
    { class: 'map', viewBox: `0 0 ${width} ${height}`, width, height, role: 'group', 'aria-label': 'Clusters and the tunnels between them' },
    state.links.map((link) => {
      const a = at.get(link.a);
      const b = at.get(link.b);
      return a && b ? between(link, a, b, box, places.length) : null;
    }),
    places.map((place) => node(place, box)),
  );
}

/** @param {Cluster[]} clusters @param {number} width @param {number} height @param {{ w: number, h: number }} box @returns {Place[]} */
function placed(clusters, width, height, box) {
  const order = [...clusters].sort((x, y) => (x.region === y.region ? (x.name < y.name ? -1 : 1) : x.region < y.region ? -1 : 1));
  const center = { x: width / 2, y: height / 2 };
  const rx = Math.min(width / 2 - box.w / 2 - 2, 330);
  const ry = height / 2 - box.h / 2 - 2;
  // Two stand beside each other, three and more on a ring whose first is at the top.
  const first = order.length === 2 ? Math.PI : -Math.PI / 2;
  // A triangle does not reach the sides and the bottom of its ring by itself.
  const reach = Math.max(...order.map((_, index) => Math.abs(Math.cos(first + (index * 2 * Math.PI) / order.length))), 0.5);
  const places = order.map((cluster, index) => {
    const angle = first + (index * 2 * Math.PI) / order.length;
    const alone = order.length === 1;
    return { cluster, x: alone ? center.x : center.x + (rx * Math.cos(angle)) / reach, y: alone ? center.y : center.y + ry * Math.sin(angle) };
  });
  const low = Math.max(...places.map((place) => place.y));
  const spare = height - (low + box.h / 2 + 2);
  return places.map((place) => ({ ...place, y: place.y + (order.length > 2 ? ((place.y - box.h / 2) / (low - box.h / 2 || 1)) * spare : 0) }));
}

/** @param {Link} link @param {Place} a @param {Place} b @param {{ w: number, h: number }} box @param {number} among */
function between(link, a, b, box, among) {
  const [start, end] = [edge(a, b, box), edge(b, a, box)];
  const length = Math.hypot(end.x - start.x, end.y - start.y) || 1;
  const unit = { x: (end.x - start.x) / length, y: (end.y - start.y) / length };
  // Lines across cross each other in the middle: their words stand before it.
  const where = among > 3 ? 0.36 : 0.5;
  const middle = along(start, end, where);
  const known_ = link.state !== 'not reported';
  const words = known_ ? [link.rttMicros === null ? 'RTT not reported' : duration(link.rttMicros)] : ['not reported'];
  if (link.state === 'down') words[0] = 'down';
  if (link.state === 'degraded') words.unshift(`${link.tunnelsUp}/${link.tunnels} up`);
  if (known(link.lossPercent) && link.lossPercent >= 0.01) words.push(`${short(link.lossPercent)} % loss`);
  const wide = Math.max(...words.map((word) => word.length)) * 6.6 + 16;
  const tall = words.length * 15 + 7;
  return s(
    'g',
    { key: `l/${link.a}/${link.b}`, class: `link ${link.state.replace(' ', '-')}`, 'aria-hidden': 'true' },
    s('title', null, `${plain(link.a)} and ${plain(link.b)}: ${linkWords(link)}`),
    s('line', { class: 'tunnel', x1: round(start.x), y1: round(start.y), x2: round(end.x), y2: round(end.y) }),
    lane('ab', rateFrom(link, link.a)?.requestsPerSecond, start, end, unit, length),
    lane('ba', rateFrom(link, link.b)?.requestsPerSecond, end, start, { x: -unit.x, y: -unit.y }, length),
    s('rect', { class: 'pill', x: round(middle.x - wide / 2), y: round(middle.y - tall / 2), width: round(wide), height: tall, rx: 5 }),
    words.map((word, index) => s('text', { key: String(index), class: 'rtt', x: round(middle.x), y: round(middle.y - tall / 2 + 15 + index * 15), 'text-anchor': 'middle' }, word)),
  );
}

/** Requests that go one way: a line as thick as they are many, beside the tunnel, with its figure where they come from.
 * @param {string} key @param {number | undefined} perSecond @param {{ x: number, y: number }} from @param {{ x: number, y: number }} to_
 * @param {{ x: number, y: number }} unit @param {number} length */
function lane(key, perSecond, from, to_, unit, length) {
  if (!known(perSecond) || perSecond <= 0) return null;
  const thick = Math.min(7, 1.5 + 1.3 * Math.log10(1 + perSecond));
  const off = 5 + thick / 2;
  // To the right of whoever goes there, so that both ways have a side of their own.
  const side = { x: -unit.y * off, y: unit.x * off };
  const shift = (/** @type {{ x: number, y: number }} */ point, /** @type {number} */ by) => ({ x: point.x + side.x + unit.x * by, y: point.y + side.y + unit.y * by });
  const start = shift(from, 4);
  const tip = shift(to_, -4);
  const neck = shift(to_, -4 - thick - 5);
  const half = thick / 2 + 3;
  const head = [tip, { x: neck.x - unit.y * half, y: neck.y + unit.x * half }, { x: neck.x + unit.y * half, y: neck.y - unit.x * half }];
  const word = along(start, tip, 0.2);
  const reach = 9 + thick / 2 + 6 * Math.abs(unit.y) * 1.4;
  return s(
    'g',
    { key, class: 'lane' },
    s('line', { x1: round(start.x), y1: round(start.y), x2: round(neck.x), y2: round(neck.y), style: { 'stroke-width': round(thick) } }),
    s('path', { d: `M${head.map((point) => `${round(point.x)} ${round(point.y)}`).join('L')}Z` }),
    // Where there is no room for it, the table of tunnels has it.
    length < 130 ? null : s(
      'text',
      {
        x: round(word.x - unit.y * reach),
        y: round(word.y + unit.x * reach + 4),
        'text-anchor': -unit.y > 0.35 ? 'start' : -unit.y < -0.35 ? 'end' : 'middle',
      },
      rate(perSecond),
    ),
  );
}

/** @param {Place} place @param {{ w: number, h: number }} box */
function node({ cluster, x, y }, box) {
  const left = x - box.w / 2;
  const top = y - box.h / 2;
  const fits = Math.floor((box.w - 36) / 8);
  const entering = cluster.entering === null ? 'not reported' : `in ${rate(cluster.entering.requestsPerSecond)}`;
  const serving = cluster.serving === null ? '' : `serves ${rate(cluster.serving.requestsPerSecond)}`;
  const how = tone(cluster.state);
  const whole = `${plain(cluster.name)}, ${plain(cluster.region)}, ${cluster.state}, ${entering} ${serving}`;
  return s(
    'a',
    { key: `n/${cluster.name}`, class: `node ${how} ${cluster.state}`, href: to('clusters', cluster.name), 'aria-label': whole },
    s('title', null, whole),
    s('rect', { x: round(left), y: round(top), width: box.w, height: box.h, rx: 8 }),
    s('g', { transform: `translate(${round(left + 10)} ${round(top + 11)})` }, mark(how)),
    s('text', { class: 'title', x: round(left + 27), y: round(top + 21) }, clip(plain(cluster.name), fits)),
    s('text', { class: 'quiet', x: round(left + 10), y: round(top + 39) }, cluster.state === 'active' ? clip(plain(cluster.region), fits + 3) : cluster.state),
    s('text', { class: 'figures', x: round(left + 10), y: round(top + 56) }, box.w > 120 && serving ? `${entering} · ${serving}` : entering),
  );
}

/** Where the line from the middle of `a` to that of `b` leaves the box of `a`.
 * @param {Place} a @param {Place} b @param {{ w: number, h: number }} box */
function edge(a, b, box) {
  const dx = b.x - a.x;
  const dy = b.y - a.y;
  const by = Math.min(dx === 0 ? Infinity : box.w / 2 / Math.abs(dx), dy === 0 ? Infinity : box.h / 2 / Math.abs(dy));
  const t = Number.isFinite(by) ? Math.min(by, 0.5) : 0;
  return { x: a.x + dx * t, y: a.y + dy * t };
}

/** @param {{ x: number, y: number }} from @param {{ x: number, y: number }} to_ @param {number} t */
function along(from, to_, t) {
  return { x: from.x + (to_.x - from.x) * t, y: from.y + (to_.y - from.y) * t };
}

/** @param {number} value */
function round(value) {
  return Math.round(value * 10) / 10;
}

/** @param {string} text @param {number} most */
export function clip(text, most) {
  const chars = [...text];
  return chars.length <= most ? text : `${chars.slice(0, Math.max(1, most - 1)).join('')}…`;
}
