// All services: how they are, how much they are asked, and where their requests go now.

import { amount, app, change, find, finder } from './app.js';
import { chip, empty, headings, limited, rateCells, search, serviceLink, shares, silent } from './bits.js';
import { h } from './dom.js';
import { counted, plain } from './format.js';
import { illness } from './model.js';
import { steady } from './steady.js';

/** @import { VNode } from './dom.js' */
/** @import { Service, State } from './contract.js' */

/** @param {State} state @returns {{ title: string, body: VNode[] }} */
export function servicesView(state) {
  const wanted = find('find-service');
  const found = state.services.filter((service) => [service.name, ...service.hosts, ...service.clusters.map((at) => at.cluster)].some((text) => text.toLowerCase().includes(wanted)));
  const { by, down } = app.ui.order;
  const order = steady('services-table', found, (service) => service.name, `${by} ${down} ${wanted}`, () => sorted(found, app.ui.order));
  const { shown, rest } = limited(order, amount('services', 50, 'service'));
  const left = state.servicesLeftOff > 0 ? h('p', { key: 'left', class: 'quiet' }, `${counted(state.servicesLeftOff, 'service')} with fewer requests are not in this list: `, h('code', null, 'meshctl services')) : null;
  return {
    title: 'Services',
    body: [
      h('div', { key: 'head', class: 'head' }, h('h1', null, 'Services'), h('p', { class: 'quiet' }, found.length === state.services.length ? counted(found.length, 'service') : `${found.length} of ${counted(state.services.length, 'service')}`), search(finder('find-service', 'Find a service, host or cluster'))),
      h('section', { key: 'list', class: 'panel', 'aria-label': 'Services' }, shown.length === 0 ? empty(wanted === '' ? 'No cluster offers a service yet.' : 'No service is called that.') : servicesTable(state, shown, 'services-table', true), rest),
      ...(left ? [left] : []),
    ],
  };
}

/** @typedef {{ by: string, down: boolean }} Order */

/** @type {Record<string, (service: Service) => number | string | null | undefined>} */
const BY = {
  name: (service) => service.name,
  state: illness,
  rate: (service) => service.rate?.requestsPerSecond,
  success: (service) => service.rate?.successPercent,
  p50: (service) => service.rate?.p50Micros,
  p99: (service) => service.rate?.p99Micros,
};

/** What is not known comes last, whichever way. @param {Service[]} services @param {Order} order */
export function sorted(services, order) {
  const by = BY[order.by] ?? ((/** @type {Service} */ service) => service.name);
  const way = order.down ? -1 : 1;
  return [...services].sort((x, y) => {
    const [a, b] = [by(x) ?? null, by(y) ?? null];
    if (a === null || b === null) return a === b ? (x.name < y.name ? -1 : 1) : a === null ? 1 : -1;
    if (a === b) return x.name < y.name ? -1 : 1;
    return a < b ? -way : way;
  });
}

/** @param {State} state @param {Service[]} services @param {string} id @param {boolean} [sortable] */
export function servicesTable(state, services, id, sortable = false) {
  const colours = palette(state);
  return h(
    'table',
    { id, class: 'services', role: 'table' },
    sortable ? sortableHeadings('Services') : headings('Services', ['Service', '#Requests', '#Success', '#p50~', '#p99~', 'Where they go']),
    h('tbody', { role: 'rowgroup' }, services.map((service) => row(service, colours))),
  );
}

/** @param {string} caption */
function sortableHeadings(caption) {
  const columns = [
    { by: 'name', words: 'Service', class: '' },
    { by: 'rate', words: 'Requests', class: 'figure' },
    { by: 'success', words: 'Success', class: 'figure' },
    { by: 'p50', words: 'p50', class: 'figure wide' },
    { by: 'p99', words: 'p99', class: 'figure wide' },
  ];
  const { order } = app.ui;
  const turn = (/** @type {string} */ by) => change((it) => (it.ui.order = { by, down: it.ui.order.by === by ? !it.ui.order.down : by !== 'name' && by !== 'success' }));
  return [
    h('caption', { class: 'unseen' }, caption),
    h(
      'thead',
      { role: 'rowgroup' },
      h(
        'tr',
        { role: 'row' },
        columns.map((column) => {
          const chosen = order.by === column.by;
          return h(
            'th',
            { key: column.by, scope: 'col', role: 'columnheader', class: column.class, 'aria-sort': chosen ? (order.down ? 'descending' : 'ascending') : undefined },
            h('button', { type: 'button', class: 'sort', on: { click: () => turn(column.by) } }, column.words, h('span', { class: 'way', 'aria-hidden': 'true' }, chosen ? (order.down ? '↓' : '↑') : '')),
          );
        }),
        h('th', { key: 'flow', scope: 'col', role: 'columnheader' }, 'Where they go'),
      ),
    ),
  ];
}

/** @param {Service} service @param {Map<string, string>} colours */
function row(service, colours) {
  return h(
    'tr',
    { key: service.name, role: 'row' },
    h('th', { scope: 'row', role: 'rowheader' }, serviceLink(service.name), h('div', { class: 'under' }, service.state === 'ready' ? null : chip(service.state), steered(service))),
    rateCells(service.rate),
    h('td', { class: 'flow', role: 'cell' }, destinations(service, colours)),
  );
}

/** What an operator has said about where it goes, in a word or two. @param {Service} service */
function steered(service) {
  const words = [];
  const away = service.clusters.filter((at) => at.state === 'avoided').map((at) => plain(at.cluster));
  const loud = service.reasons.find((reason) => reason.severity !== 'info');
  if (loud) words.push(plain(loud.reason));
  if (service.split) words.push('split');
  if (away.length > 0) words.push(`away from ${away.join(', ')}`);
  return words.length === 0 ? null : h('span', { class: 'quiet' }, words.join(' · '));
}

// More names than that stand in nobody's way, and are not read either: the service itself lists all.
const NAMED_MAX = 5;
const NAMED_OF_MANY_MAX = 3;

/** By cluster, summed over where requests enter. @param {Service} service @param {Map<string, string>} colours */
export function destinations(service, colours) {
  if (service.flows === null) return silent();
  /** @type {Map<string | null, number>} */
  const sums = new Map();
  for (const flow of service.flows) sums.set(flow.to, (sums.get(flow.to) ?? 0) + flow.rate.requestsPerSecond);
  const all = [...sums.values()].reduce((sum, value) => sum + value, 0);
  if (all <= 0) return h('span', { class: 'quiet' }, 'no requests');
  const order = [...sums].sort((x, y) => y[1] - x[1]);
  const most = order.length > NAMED_MAX ? NAMED_OF_MANY_MAX : NAMED_MAX;
  const parts = order.slice(0, most).map(([to, value]) => ({ key: `to/${to ?? ''}`, label: to === null ? 'nowhere' : plain(to), share: value / all, class: to === null ? 'nowhere' : (colours.get(to) ?? 'others') }));
  const rest = order.slice(most).reduce((sum, [, value]) => sum + value, 0);
  if (rest > 0) parts.push({ key: 'others', label: `${order.length - most} others`, share: rest / all, class: 'others' });
  // By name, so that what moves is the length of parts and not their order.
  const named = parts.filter((part) => part.key !== 'others').sort((x, y) => (x.key < y.key ? -1 : 1));
  return shares([...named, ...parts.filter((part) => part.key === 'others')]);
}

const COLOURS = 8;

/** A colour for every cluster, the same in every view. @param {State} state @returns {Map<string, string>} */
export function palette(state) {
  return new Map(state.clusters.map((cluster, index) => [cluster.name, `c${index % COLOURS}`]));
}
