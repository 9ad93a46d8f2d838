// The slowest requests, and where their time went.

import { find, finder, now } from './app.js';
import { clusterLink, empty, name, search, serviceLink } from './bits.js';
import { h } from './dom.js';
import { age, counted, duration, plain } from './format.js';

/** @import { VNode } from './dom.js' */
/** @import { Hop, SlowRequest, State } from './contract.js' */

/** @param {State} state @returns {{ title: string, body: VNode[] }} */
export function slowView(state) {
  const wanted = find('find-slow');
  const all = state.slowest ?? [];
  const found = all.filter((one) => [one.service, one.path, one.method, one.from, one.cluster, one.endpoint, one.traceId, String(one.status), ...(one.hops ?? []).map((part) => part.hop)].join(' ').toLowerCase().includes(wanted));
  return {
    title: 'Slow requests',
    body: [
      h('div', { key: 'head', class: 'head' }, h('h1', null, 'Slowest requests'), h('p', { class: 'quiet' }, state.slowest === null ? '' : `${counted(found.length, 'request')} of the last five minutes`), search(finder('find-slow', 'Find a service, path, cluster or trace'))),
      h('p', { key: 'how', class: 'quiet' }, 'Each bar is the time of one request, by the hop that had it. ', h('code', null, 'meshctl slow SERVICE'), ' compares with what requests usually take.'),
      legend(found),
      h('section', { key: 'list', class: 'panel', 'aria-label': 'Slowest requests' }, state.slowest === null ? empty('Not known yet.') : found.length === 0 ? empty(all.length === 0 ? 'None in the last five minutes.' : 'No request is like that.') : h('ol', { class: 'slow' }, found.map((request, index) => slowRow(request, `${index}`, false)))),
    ],
  };
}

/** What each hop is, in words, and its colour. The words are those of docs/slow.md. @type {Record<string, { words: string, class: string }>} */
const HOPS = {
  queue: { words: 'in the gateway where it entered', class: 'h-gateway' },
  lost: { words: 'in attempts that failed', class: 'h-lost' },
  'tunnel-wait': { words: 'waiting for the tunnel', class: 'h-tunnel' },
  tunnel: { words: 'in the tunnel', class: 'h-tunnel' },
  'far-queue': { words: 'in the far gateway', class: 'h-gateway' },
  'far-lost': { words: 'in attempts of the far gateway that failed', class: 'h-lost' },
  'endpoint-wait': { words: 'waiting for a stream to the endpoint', class: 'h-connect' },
  connect: { words: 'connecting to the endpoint', class: 'h-connect' },
  upload: { words: 'being sent by its client', class: 'h-client' },
  'first-byte': { words: 'until the endpoint begins to answer', class: 'h-endpoint' },
  body: { words: 'being answered', class: 'h-body' },
  beyond: { words: 'behind a tunnel whose gateway says nothing', class: 'h-silent' },
};

/** @param {string} hop */
function hopOf(hop) {
  return HOPS[hop] ?? { words: plain(hop), class: 'h-silent' };
}

/** @param {SlowRequest[]} requests */
function legend(requests) {
  const there = new Set(requests.flatMap((request) => (request.hops ?? []).map((part) => part.hop)));
  /** One entry per colour, with all hops that have it. @type {Map<string, string[]>} */
  const entries = new Map();
  for (const [hop, { class: colour }] of Object.entries(HOPS)) if (there.has(hop)) entries.set(colour, [...(entries.get(colour) ?? []), hop]);
  return h('ul', { key: 'legend', class: 'key', hidden: entries.size === 0, 'aria-label': 'Hops' }, [...entries].map(([colour, names]) => h('li', { key: colour }, h('i', { class: colour }), names.join(', '))));
}

/** @param {SlowRequest} request @param {string} key @param {boolean} brief @returns {VNode} */
export function slowRow(request, key, brief) {
  const failed = request.status === null || request.status >= 500;
  return h(
    'li',
    { key, class: 'request' },
    h('span', { class: 'total' }, duration(request.totalMicros)),
    h(
      'div',
      { class: 'told' },
      h(
        'p',
        { class: 'line' },
        serviceLink(request.service),
        ' ',
        h('span', { class: 'path' }, name(`${request.method} ${request.path}`)),
        ' ',
        h('span', { class: failed ? 'bad' : 'quiet' }, request.status === null ? 'no status' : String(request.status), request.flags === '' ? '' : ` ${plain(request.flags)}`),
      ),
      hops(request),
      h(
        'p',
        { class: 'about' },
        verdict(request),
        h('span', { key: 'way' }, name(request.from), request.cluster === null ? '' : [' → ', clusterLink(request.cluster)], request.endpoint === null || brief ? '' : [' ', name(request.endpoint)]),
        h('span', { key: 'age' }, `${age(now() - request.endedUnixMs)} ago`),
        brief || request.traceId === null ? null : h('span', { key: 'trace' }, 'trace ', h('code', null, plain(request.traceId))),
      ),
    ),
  );
}

/** @param {SlowRequest} request */
function verdict(request) {
  if (request.hops === null) return h('span', { key: 'hop', class: 'silent' }, 'hops not reported');
  const most = request.hops.reduce((/** @type {Hop | null} */ worst, part) => (worst === null || part.micros > worst.micros ? part : worst), null);
  return most && h('span', { key: 'hop', class: 'hop' }, `${duration(most.micros)} ${hopOf(most.hop).words}`);
}

/** @param {SlowRequest} request */
function hops(request) {
  const parts = request.hops ?? [];
  if (parts.length === 0) return null;
  const sum = parts.reduce((total, part) => total + part.micros, 0);
  const rest = Math.max(0, request.totalMicros - sum);
  const words = parts.map((part) => `${duration(part.micros)} ${hopOf(part.hop).words}${part.at === null ? '' : ` at ${plain(part.at)}`}`);
  return h(
    'div',
    { class: 'bar hops', role: 'img', 'aria-label': words.join(', ') },
    // What would be narrower than a line is in the words only.
    parts.map((part, index) => part.micros < request.totalMicros * 0.004 ? null : h('span', { key: `${part.hop}/${index}`, class: hopOf(part.hop).class, title: words[index], style: { 'flex-grow': (part.micros / Math.max(1, request.totalMicros)).toFixed(4) } })),
    rest > request.totalMicros * 0.001 ? h('span', { key: 'rest', class: 'h-none', style: { 'flex-grow': (rest / request.totalMicros).toFixed(4) } }) : null,
  );
}
