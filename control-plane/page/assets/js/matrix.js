// Every pair of many clusters as one small square: rows are where requests enter, columns where they go. A hundred clusters are ten thousand
// squares in a handful of paths, one per shade. What is unwell has a colour of its own above all shades.

import { h, s } from './dom.js';
import { counted, known, percent, plain, rate } from './format.js';
import { linkWords, linksByPair, rateFrom, regions, to } from './model.js';
import { choose } from './bits.js';

/** @import { VNode } from './dom.js' */
/** @import { Cluster, Link, State } from './contract.js' */

/** @typedef {'traffic' | 'rtt' | 'loss'} Shade */

// Upper ends of the shades; above the last is a shade more.
/** @type {Record<Shade, number[]>} */
const STEPS = { traffic: [1, 10, 100, 1_000], rtt: [5_000, 25_000, 75_000, 150_000], loss: [0.01, 0.1, 1, 5] };
/** @type {Record<Shade, string[]>} */
const WORDS = {
  traffic: ['<1/s', '<10/s', '<100/s', '<1k/s', '≥1k/s'],
  rtt: ['<5 ms', '<25 ms', '<75 ms', '<150 ms', '≥150 ms'],
  loss: ['<0.01 %', '<0.1 %', '<1 %', '<5 %', '≥5 %'],
};
const CELL_MAX = 22;
const CELL_MIN = 4;

/**
 * @param {State} state
 * @param {number} width
 * @param {{ shade: Shade, change: (shade: Shade) => void, over: [string, string] | null, hover: (pair: [string, string] | null) => void }} how
 * @returns {VNode}
 */
export function matrix(state, width, how) {
  const grouped = regions(state);
  const order = grouped.flatMap((group) => group.clusters);
  const count = order.length;
  const margin = width < 560 ? 76 : 110;
  const cell = Math.min(CELL_MAX, Math.floor((width - margin) / count));
  if (cell < CELL_MIN) return h('p', { class: 'empty' }, `${count} clusters are too many squares for this screen: the list below has them.`);
  const gap = cell > 9 ? 2 : 1;
  const find = linksByPair(state);
  const paths = shaded(order, find, how.shade, cell, gap, margin);
  const size = count * cell;
  const lines = [];
  const labels = [];
  let row = 0;
  for (const { region, clusters } of grouped) {
    const top = row * cell;
    if (row > 0) lines.push(`M${margin} ${top - gap / 2}h${size}M${margin + top - gap / 2} 0v${size}`);
    // Names where there is room for them; regions otherwise, if they are as high as a line.
    if (cell >= 12) {
      clusters.forEach((cluster, index) => labels.push(label(`n/${cluster.name}`, cluster.name, margin, top + index * cell + cell / 2)));
    } else if (clusters.length * cell >= 11) labels.push(label(`r/${region}`, region, margin, top + (clusters.length * cell) / 2));
    row += clusters.length;
  }
  const at = how.over ? [order.findIndex((c) => c.name === how.over?.[0]), order.findIndex((c) => c.name === how.over?.[1])] : [-1, -1];
  const band = (at[0] ?? -1) >= 0 && (at[1] ?? -1) >= 0 ? `M${margin} ${(at[0] ?? 0) * cell}h${size}v${cell - gap}h${-size}ZM${margin + (at[1] ?? 0) * cell} 0h${cell - gap}v${size}h${gap - cell}Z` : 'M0 0';
  const pair = (/** @type {MouseEvent & { currentTarget: Element }} */ event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const scale = (margin + size) / box.width;
    const from = order[Math.floor(((event.clientY - box.top) * scale) / cell)];
    const dest = order[Math.floor(((event.clientX - box.left) * scale - margin) / cell)];
    return from && dest ? /** @type {[string, string]} */ ([from.name, dest.name]) : null;
  };
  return h(
    'div',
    { class: 'matrix' },
    h(
      'div',
      { class: 'tools' },
      choose({
        label: 'Colour shows',
        value: how.shade,
        options: [
          { value: 'traffic', words: 'Traffic' },
          { value: 'rtt', words: 'RTT' },
          { value: 'loss', words: 'Loss' },
        ],
        change: (value) => how.change(/** @type {Shade} */ (value)),
      }),
      key(how.shade),
    ),
    s(
      'svg',
      {
        viewBox: `0 0 ${margin + size} ${size}`,
        width: margin + size,
        height: size,
        role: 'img',
        'aria-label': `${summary(state)} The table below has each pair.`,
        on: {
          mousemove: (event) => how.hover(pair(event)),
          mouseleave: () => how.hover(null),
          click: (event) => {
            const over = pair(event);
            if (over) location.hash = to('clusters', over[0]);
          },
        },
      },
      s('path', { class: 'band', d: band }),
      [...paths].map(([shade, d]) => s('path', { key: shade, class: `cells ${shade}`, d })),
      s('path', { class: 'lines', d: lines.join('') || 'M0 0' }),
      labels,
    ),
    h('p', { class: 'readout', 'aria-hidden': 'true' }, how.over ? words(how.over, find, state) : 'Rows: where requests enter. Columns: where they go. Point at a square to read it.'),
  );
}

/** @param {string} id @param {string} text @param {number} margin @param {number} y */
function label(id, text, margin, y) {
  const most = Math.floor(margin / 7);
  const whole = [...plain(text)];
  const shown = whole.length > most ? `${whole.slice(0, most - 1).join('')}…` : whole.join('');
  return s('text', { key: id, class: 'label', x: margin - 7, y: y + 4, 'text-anchor': 'end' }, s('title', null, whole.join('')), shown);
}

/** @param {Cluster[]} order @param {(x: string, y: string) => Link | undefined} find @param {Shade} shade @param {number} cell @param {number} gap @param {number} margin */
function shaded(order, find, shade, cell, gap, margin) {
  /** @type {Map<string, string[]>} */
  const paths = new Map(['idle', 's0', 's1', 's2', 's3', 's4', 'silent', 'degraded', 'down'].map((name) => [name, []]));
  const side = cell - gap;
  const square = `h${side}v${side}h${-side}z`;
  order.forEach((from, row) => {
    order.forEach((dest, column) => {
      const where = row === column ? null : shadeOf(find(from.name, dest.name), from.name, shade);
      if (where) paths.get(where)?.push(`M${margin + column * cell} ${row * cell}${square}`);
    });
  });
  return new Map([...paths].map(([name, parts]) => [name, parts.join('') || 'M0 0']));
}

/** @param {Link | undefined} link @param {string} from @param {Shade} shade */
function shadeOf(link, from, shade) {
  if (!link) return null;
  if (link.state === 'down' || link.state === 'degraded') return link.state;
  const value = { traffic: rateFrom(link, from)?.requestsPerSecond, rtt: link.rttMicros, loss: link.lossPercent }[shade];
  if (link.state === 'not reported' || !known(value)) return 'silent';
  if (shade === 'traffic' && value <= 0) return 'idle';
  const steps = STEPS[shade];
  const step = steps.findIndex((end) => value < end);
  return `s${step < 0 ? steps.length : step}`;
}

/** @param {Shade} shade */
function key(shade) {
  const entries = [
    ...WORDS[shade].map((word, index) => ({ class: `s${index}`, word })),
    ...(shade === 'traffic' ? [{ class: 'idle', word: 'none' }] : []),
    { class: 'degraded', word: 'fewer tunnels' },
    { class: 'down', word: 'down' },
    { class: 'silent', word: 'not reported' },
  ];
  return h('ul', { class: 'key', 'aria-label': 'Colours' }, entries.map((entry) => h('li', { key: entry.class }, h('i', { class: `cells ${entry.class}` }), entry.word)));
}

/** @param {[string, string]} pair @param {(x: string, y: string) => Link | undefined} find @param {State} state */
function words([from, dest], find, state) {
  if (from === dest) {
    const cluster = state.clusters.find((one) => one.name === from);
    return `${plain(from)}: ${cluster?.state ?? ''} · in ${rate(cluster?.entering?.requestsPerSecond)} · serves ${rate(cluster?.serving?.requestsPerSecond)}`;
  }
  const link = find(from, dest);
  if (!link) return `${plain(from)} to ${plain(dest)}: no tunnels`;
  const going = rateFrom(link, from);
  const ok = going && known(going.successPercent) ? ` · ${percent(going.successPercent / 100)} succeed` : '';
  return `${plain(from)} to ${plain(dest)}: ${link.state} · ${linkWords(link)} · ${rate(going?.requestsPerSecond)}${ok}`;
}

/** @param {State} state */
function summary(state) {
  const unwell = state.links.filter((link) => link.state === 'down' || link.state === 'degraded').length;
  return `${counted(state.links.length, 'pair')} of ${state.clusters.length} clusters, ${unwell} of them not well.`;
}
