// Clusters, what is between them, and one of them.

import { amount, app, find, finder, watchWidth } from './app.js';
import { action, chip, clusterLink, empty, figure, headings, limited, mark, name, panel, rateCells, search, serviceLink, success, successTone } from './bits.js';
import { open } from './dialog.js';
import { h } from './dom.js';
import { counted, duration, known, plain, rate, short } from './format.js';
import { forbidden, rateFrom, to, together } from './model.js';
import { eventRow } from './view-events.js';
import { gatewaysTable } from './view-gateways.js';
import { drawing } from './view-overview.js';

/** @import { VNode } from './dom.js' */
/** @import { Cluster, Link, Rate, State } from './contract.js' */

/** @param {State} state @returns {{ title: string, body: VNode[] }} */
export function clustersView(state) {
  const wanted = find('find-cluster');
  const found = state.clusters.filter((cluster) => `${cluster.name} ${cluster.region} ${cluster.state}`.toLowerCase().includes(wanted));
  const order = [...found].sort((x, y) => rank(x) - rank(y) || (x.name < y.name ? -1 : 1));
  const { shown, rest } = limited(order, amount('clusters', 100, 'cluster'));
  return {
    title: 'Clusters',
    body: [
      h('div', { key: 'head', class: 'head' }, h('h1', null, 'Clusters'), h('p', { class: 'quiet' }, found.length === state.clusters.length ? counted(found.length, 'cluster') : `${found.length} of ${counted(state.clusters.length, 'cluster')}`), search(finder('find-cluster', 'Find a cluster, region or state'))),
      panel({ id: 'map', title: 'Map' }, h('div', { class: 'drawing', made: watchWidth('map-large') }, state.clusters.length === 0 ? empty('No cluster has joined yet.') : drawing(state, 'map-large'))),
      panel({ id: 'clusters', title: 'List' }, shown.length === 0 ? empty('No cluster is called that.') : clustersTable(shown), rest),
      links(state, wanted),
    ],
  };
}

/** @param {Cluster} cluster */
function rank(cluster) {
  return { unreachable: 0, drained: 1, pending: 2, active: 3 }[cluster.state];
}

/** @param {Cluster[]} clusters */
function clustersTable(clusters) {
  return h(
    'table',
    null,
    headings('Clusters', ['Cluster', 'State', 'Region~', 'Agent~', '#Gateways~', '#Entering', '#Success', '#p50~', '#p99~', '#Serving~']),
    h(
      'tbody',
      null,
      clusters.map((cluster) => {
        const connected = cluster.gateways.filter((gateway) => gateway.state !== 'disconnected').length;
        return h(
          'tr',
          { key: cluster.name },
          h('th', { scope: 'row' }, clusterLink(cluster.name)),
          h('td', null, chip(cluster.state)),
          h('td', { class: 'wide' }, name(cluster.region)),
          h('td', { class: 'wide' }, chip(cluster.agent)),
          h('td', { class: 'figure wide' }, `${connected} of ${cluster.gateways.length}`),
          rateCells(cluster.entering),
          h('td', { class: 'figure wide' }, figure(cluster.serving?.requestsPerSecond, rate)),
        );
      }),
    ),
  );
}

/** What is between all of them, as a table: what is not well first, then what carries most. @param {State} state @param {string} wanted */
function links(state, wanted) {
  const found = state.links.filter((link) => `${link.a} ${link.b}`.toLowerCase().includes(wanted));
  const order = [...found].sort((x, y) => linkRank(x) - linkRank(y) || carried(y) - carried(x) || (x.a + x.b < y.a + y.b ? -1 : 1));
  const { shown, rest } = limited(order, amount('links', 30, 'pair'));
  return panel(
    { id: 'links', title: 'Tunnels', note: 'what is not well first, then what carries most' },
    shown.length === 0
      ? empty('None.')
      : h(
          'table',
          null,
          headings('Tunnels between clusters', ['Between', 'And', 'State', '#Tunnels~', '#RTT', '#Loss~', 'Transport~', '#There', '#Back']),
          h('tbody', null, shown.map((link) => h('tr', { key: `${link.a}\n${link.b}` }, h('th', { scope: 'row' }, clusterLink(link.a)), h('td', null, clusterLink(link.b)), linkCells(link), flow(link.aToB), flow(link.bToA)))),
        ),
    rest,
  );
}

/** @param {Link} link */
function linkRank(link) {
  return { down: 0, degraded: 1, up: 2, 'not reported': 2 }[link.state];
}

/** @param {Link} link */
function carried(link) {
  return (link.aToB?.requestsPerSecond ?? 0) + (link.bToA?.requestsPerSecond ?? 0);
}

/** @param {Link} link */
function linkCells(link) {
  const broken = link.broken.map(plain).join('\n');
  return [
    h('td', { key: 'state', title: broken || undefined }, chip(link.state)),
    h('td', { key: 'tunnels', class: 'figure wide' }, link.state === 'not reported' ? figure(null, String) : `${link.tunnelsUp} of ${link.tunnels}`),
    h('td', { key: 'rtt', class: 'figure' }, figure(link.rttMicros, duration)),
    h('td', { key: 'loss', class: 'figure wide' }, figure(link.lossPercent, (value) => `${short(value)} %`)),
    h('td', { key: 'transport', class: 'wide' }, link.transports.map(plain).join(', ')),
  ];
}

/** @param {Rate | null} of */
function flow(of) {
  return h('td', { class: `figure ${successTone(of)}`, title: of && known(of.successPercent) ? `${of.successPercent.toFixed(2)} % succeed` : undefined }, figure(of?.requestsPerSecond, rate));
}

/** @param {State} state @param {string} wanted @returns {{ title: string, body: VNode[] }} */
export function clusterView(state, wanted) {
  const cluster = state.clusters.find((one) => one.name === wanted);
  const back = h('p', { key: 'back', class: 'back' }, h('a', { href: to('clusters') }, '← Clusters'));
  if (!cluster) return { title: plain(wanted), body: [back, h('div', { key: 'head', class: 'head' }, h('h1', null, name(wanted))), empty('No cluster is called that.')] };
  const tile = (/** @type {string} */ title, /** @type {any} */ value, /** @type {string} */ tone = '') => h('div', { key: title, class: `tile ${tone}` }, h('dt', null, title), h('dd', null, h('span', { class: 'value' }, value)));
  return {
    title: plain(cluster.name),
    body: [
      back,
      h('div', { key: 'head', class: 'head' }, h('h1', null, name(cluster.name)), chip(cluster.state), h('p', { class: 'quiet' }, name(cluster.region), ` · agent ${cluster.agent}`), actions(cluster)),
      ...(cluster.problems.length > 0 ? [h('ul', { key: 'problems', class: 'reasons', 'aria-label': 'What is not used of what it reports' }, cluster.problems.map((problem, index) => h('li', { key: String(index), class: 'warning' }, mark('warning'), h('bdi', null, plain(problem)))))] : []),
      h(
        'dl',
        { key: 'now', class: 'figures' },
        tile('Requests entering', figure(cluster.entering?.requestsPerSecond, rate)),
        tile('Success', success(cluster.entering), successTone(cluster.entering)),
        tile('p99', figure(cluster.entering?.p99Micros, duration)),
        tile('Requests served', figure(cluster.serving?.requestsPerSecond, rate)),
      ),
      h('div', { key: 'grid', class: 'grid' }, h('div', { key: 'left', class: 'column' }, tunnels(state, cluster), gateways(state, cluster)), h('div', { key: 'right', class: 'column' }, services(state, cluster), events(state, cluster))),
    ],
  };
}

/** @param {Cluster} cluster */
function actions(cluster) {
  const may = forbidden(app.me);
  const drained = cluster.state === 'drained';
  return h(
    'div',
    { class: 'actions', role: 'group', 'aria-label': 'Change' },
    drained
      ? action({ id: 'act-undrain', words: 'End the drain…', forbidden: may, act: () => open('undrain', cluster.name) })
      : action({ id: 'act-drain', words: 'Drain…', describe: 'Let other clusters serve everything that this one serves', forbidden: may, act: () => open('drain', cluster.name) }),
    may === null ? null : h('p', { class: 'quiet' }, may),
  );
}

/** @param {State} state @param {Cluster} cluster */
function tunnels(state, cluster) {
  const all = state.links.filter((link) => link.a === cluster.name || link.b === cluster.name);
  const order = [...all].sort((x, y) => linkRank(x) - linkRank(y) || carried(y) - carried(x));
  const { shown, rest } = limited(order, amount('links-of-one', 15, 'cluster'));
  return panel(
    { id: 'tunnels', title: 'Tunnels', note: `to ${counted(all.length, 'other cluster')}` },
    shown.length === 0
      ? empty('There is no other cluster.')
      : h(
          'table',
          null,
          headings('Tunnels to other clusters', ['To', 'State', '#Tunnels~', '#RTT', '#Loss~', 'Transport~', '#Out', '#In']),
          h(
            'tbody',
            null,
            shown.map((link) => {
              const other = link.a === cluster.name ? link.b : link.a;
              return h('tr', { key: other }, h('th', { scope: 'row' }, clusterLink(other)), linkCells(link), flow(rateFrom(link, cluster.name)), flow(rateFrom(link, other)));
            }),
          ),
        ),
    rest,
  );
}

/** @param {State} state @param {Cluster} cluster */
function gateways(state, cluster) {
  return panel({ id: 'gateways', title: 'Gateways' }, cluster.gateways.length === 0 ? empty('None has joined.') : gatewaysTable(state, cluster.gateways));
}

/** @param {State} state @param {Cluster} cluster */
function services(state, cluster) {
  const all = state.services.flatMap((service) => service.clusters.filter((at) => at.cluster === cluster.name).map((at) => ({ service, at })));
  const { shown, rest } = limited(all, amount('services-of-one', 15, 'service'));
  return panel(
    { id: 'services', title: 'Services it has' },
    shown.length === 0
      ? empty('None.')
      : h(
          'table',
          null,
          headings('Services it has', ['Service', 'State', '#Ready']),
          h('tbody', null, shown.map(({ service, at }) => h('tr', { key: service.name }, h('th', { scope: 'row' }, serviceLink(service.name)), h('td', null, chip(at.state)), h('td', { class: 'figure' }, `${at.ready} of ${at.total}`)))),
        ),
    rest,
  );
}

/** @param {State} state @param {Cluster} cluster */
function events(state, cluster) {
  const all = together(state.events.filter((event) => event.cluster === cluster.name || event.source.startsWith(`${cluster.name}/`)).reverse());
  return panel({ id: 'events', title: 'What changed' }, all.length === 0 ? empty('Nothing that is remembered.') : h('ol', { class: 'events brief' }, all.slice(0, 10).map((one) => eventRow(one, true))));
}
