// One service: where its requests go and should go, why, who serves it, and what can be done about it.

import { app } from './app.js';
import { action, chip, clusterLink, empty, figure, headings, name, panel, rateCells, severityMark, shares, silent, spark, success, successTone, time, wholePercent } from './bits.js';
import { open } from './dialog.js';
import { h } from './dom.js';
import { duration, plain, rate } from './format.js';
import { splitFields } from './forms.js';
import { forbidden, to, together } from './model.js';
import { eventRow } from './view-events.js';
import { slowRow } from './view-slow.js';
import { destinations, palette } from './view-services.js';

/** @import { VNode } from './dom.js' */
/** @import { Backend, Service, State } from './contract.js' */

/** @param {State} state @param {string} wanted @returns {{ title: string, body: VNode[] }} */
export function serviceView(state, wanted) {
  const service = state.services.find((one) => one.name === wanted);
  const back = h('p', { key: 'back', class: 'back' }, h('a', { href: to('services') }, '← Services'));
  if (!service) return { title: plain(wanted), body: [back, h('div', { key: 'head', class: 'head' }, h('h1', null, name(wanted))), empty('No cluster offers it, or it is not among the thousand busiest.')] };
  const colours = palette(state);
  return {
    title: plain(service.name),
    body: [
      back,
      head(service),
      ...(service.reasons.length > 0 ? [reasons(service)] : []),
      now(service, colours),
      h(
        'div',
        { key: 'grid', class: 'grid' },
        h('div', { key: 'left', class: 'column' }, flows(service, colours), served(service), versions(service, colours)),
        h('div', { key: 'right', class: 'column' }, split(service, colours), failover(service), slow(state, service), events(state, service)),
      ),
    ],
  };
}

/** @param {Service} service */
function head(service) {
  const hosts = service.hosts.length === 0 ? null : h('span', null, service.hosts.slice(0, 3).map((host, index) => [index > 0 ? ', ' : '', name(host)]).flat());
  const ports = service.ports.map((port) => `${port.port} ${plain(port.protocol)}${port.name === '' ? '' : ` (${plain(port.name)})`}`).join(', ');
  return h('div', { key: 'head', class: 'head' }, h('h1', null, name(service.name)), chip(service.state), h('p', { class: 'quiet' }, hosts, hosts && ports ? ' · ' : '', ports, service.headless ? ' · headless: not carried between clusters' : ''), actions(service));
}

/** @param {Service} service */
function actions(service) {
  const may = forbidden(app.me);
  const { split: now_, failover: policy } = service;
  const foreign = (/** @type {string | null | undefined} */ origin) => may ?? (origin ? `It was written by users of ${plain(origin)}, and is changed there.` : null);
  const ofSplit = foreign(now_?.origin);
  const ofFailover = foreign(policy?.origin);
  const away = policy?.avoid ?? [];
  return h(
    'div',
    { class: 'actions', role: 'group', 'aria-label': 'Change' },
    action({ id: 'act-split', words: 'Split…', describe: 'Give clusters and versions their shares', forbidden: ofSplit, act: () => open('split', service.name, splitFields(service)) }),
    action({ id: 'act-switch', words: 'Switch…', describe: 'All requests to one cluster or version, everywhere at once', forbidden: ofSplit, act: () => open('switch', service.name) }),
    now_?.canUndo ? action({ id: 'act-undo', words: 'Undo switch…', forbidden: ofSplit, act: () => open('undo-switch', service.name) }) : null,
    now_ ? action({ id: 'act-clear', words: 'Clear split…', forbidden: ofSplit, act: () => open('clear-split', service.name) }) : null,
    action({ id: 'act-failover', words: 'Fail over…', describe: 'Move requests away from a cluster', forbidden: ofFailover, act: () => open('failover', service.name) }),
    away.length > 0 ? action({ id: 'act-release', words: 'Release…', describe: 'Let requests return to where they were moved away from', forbidden: ofFailover, act: () => open('release', service.name) }) : null,
    may === null ? null : h('p', { class: 'quiet' }, may),
  );
}

/** @param {Service} service */
function reasons(service) {
  return h(
    'ul',
    { key: 'reasons', class: `reasons ${service.reasons.some((reason) => reason.severity !== 'info') ? 'loud' : ''}`, 'aria-label': 'Why requests are where they are' },
    service.reasons.map((reason, index) => h('li', { key: `${reason.reason}/${index}`, class: reason.severity }, severityMark(reason.severity), h('strong', null, h('bdi', null, plain(reason.reason))), ' ', h('span', null, h('bdi', null, plain(reason.text))), reason.sinceUnixMs === null ? null : h('span', { class: 'since' }, 'since ', time(reason.sinceUnixMs)))),
  );
}

/** @param {Service} service @param {Map<string, string>} colours */
function now(service, colours) {
  const of = service.rate;
  const tile = (/** @type {string} */ title, /** @type {any} */ value, /** @type {string} */ tone = '', /** @type {VNode | null} */ more = null) => h('div', { key: title, class: `tile ${tone}` }, h('dt', null, title), h('dd', null, h('span', { class: 'value' }, value), more));
  const line = spark(app.history.services.get(service.name) ?? [], { label: 'Requests per second since the page was opened' });
  return h(
    'dl',
    { key: 'now', class: 'figures' },
    tile('Requests', of ? rate(of.requestsPerSecond) : silent(), '', line),
    tile('Success', of && of.successPercent === null ? h('span', { class: 'silent' }, 'none ended') : success(of), successTone(of)),
    tile('p50', figure(of?.p50Micros, duration)),
    tile('p99', figure(of?.p99Micros, duration)),
    h('div', { key: 'goes', class: 'tile broad' }, h('dt', null, 'Where requests go'), h('dd', null, destinations(service, colours))),
  );
}

/** @param {Service} service @param {Map<string, string>} colours */
function flows(service, colours) {
  const all = service.flows;
  return panel(
    { id: 'flows', title: 'From where to where', note: 'now' },
    all === null
      ? empty('Not reported.')
      : all.length === 0
        ? empty('No requests.')
        : h(
            'table',
            { class: 'flows' },
            headings('From where to where', ['From', 'To', 'Share~', '#Requests', '#Success', '#p50~', '#p99~']),
            h(
              'tbody',
              null,
              all.map((flow) =>
                h(
                  'tr',
                  { key: `${flow.from}\n${flow.to}` },
                  h('th', { scope: 'row' }, clusterLink(flow.from)),
                  h('td', null, flow.to === null ? h('span', { class: 'bad' }, 'nowhere') : clusterLink(flow.to)),
                  h('td', { class: 'wide' }, meter(flow.sharePercent / 100, flow.to === null ? 'nowhere' : (colours.get(flow.to) ?? 'others'))),
                  rateCells(flow.rate),
                ),
              ),
            ),
          ),
  );
}

/** @param {number} share @param {string} colour */
function meter(share, colour) {
  return h('span', { class: 'meter' }, h('span', { class: 'track' }, h('span', { class: colour, style: { width: `${Math.min(100, share * 100).toFixed(1)}%` } })), h('span', { class: 'figure' }, wholePercent(share)));
}

/** @param {Service} service */
function served(service) {
  return panel(
    { id: 'served', title: 'Who has it' },
    service.clusters.length === 0
      ? empty('No cluster.')
      : h(
          'table',
          null,
          headings('Clusters that have it', ['Cluster', 'State', '#Ready', 'Versions~', 'Last failed check~']),
          h(
            'tbody',
            null,
            service.clusters.map((at) =>
              h(
                'tr',
                { key: at.cluster },
                h('th', { scope: 'row' }, clusterLink(at.cluster)),
                h('td', null, chip(at.state)),
                h('td', { class: 'figure' }, `${at.ready} of ${at.total}`, at.unknown > 0 ? h('span', { class: 'quiet' }, `, ${at.unknown} not asked yet`) : null),
                h('td', { class: 'wide' }, at.versions.map(plain).join(', ')),
                h('td', { class: 'wide' }, at.lastFailure === null ? '' : name(at.lastFailure)),
              ),
            ),
          ),
        ),
  );
}

/** @param {Service} service @param {Map<string, string>} colours */
function versions(service, colours) {
  const all = service.versions;
  if (all !== null && all.length === 0) return null;
  return panel(
    { id: 'versions', title: 'Versions', note: 'as seen beside the endpoints' },
    all === null
      ? empty('Not reported.')
      : h(
          'table',
          null,
          headings('Versions', ['Version', 'Cluster', 'Share~', '#Requests', '#Success', '#p50~', '#p99~']),
          h(
            'tbody',
            null,
            all.map((one) => h('tr', { key: `${one.cluster}\n${one.version}` }, h('th', { scope: 'row' }, one.version === null ? h('span', { class: 'silent' }, 'no version') : name(one.version)), h('td', null, clusterLink(one.cluster)), h('td', { class: 'wide' }, meter(one.sharePercent / 100, colours.get(one.cluster) ?? 'others')), rateCells(one.rate))),
          ),
        ),
  );
}

/** @param {Service} service @param {Map<string, string>} colours */
function split(service, colours) {
  const is = service.split;
  if (is === null) return panel({ id: 'split', title: 'Split' }, empty('None: requests stay in the cluster where they enter while it can serve.'));
  return panel(
    { id: 'split', title: 'Split', note: h('span', null, 'revision ', String(is.revision), is.origin === null ? '' : [', by users of ', name(is.origin)].map((part) => part)) },
    h('div', { class: 'inner' }, backends(is.backends, colours), is.sticky === null ? null : h('p', { class: 'quiet' }, 'A client stays where it is, by ', name(is.sticky)), is.routes.map((route, index) => h('div', { key: String(index), class: 'route' }, h('p', null, 'Where ', name(route.match)), backends(route.backends, colours)))),
  );
}

/** @param {Backend[]} all @param {Map<string, string>} colours */
function backends(all, colours) {
  return shares(all.map((one) => ({ key: `${one.cluster}\n${one.version}`, label: one.version === null ? plain(one.cluster) : `${plain(one.cluster)}:${plain(one.version)}`, share: one.sharePercent / 100, class: colours.get(one.cluster) ?? 'others' })));
}

/** @param {Service} service */
function failover(service) {
  const is = service.failover;
  const order = is && is.order.length > 0 ? is.order.map(plain) : ['the cluster where they enter', 'clusters of its region', 'all others'];
  return panel(
    { id: 'failover', title: 'Failover', note: is ? `revision ${is.revision}` : 'as without a policy' },
    h(
      'dl',
      { class: 'facts' },
      h('dt', null, 'Order'),
      h('dd', null, h('ol', { class: 'tiers' }, order.map((tier, index) => h('li', { key: String(index) }, h('bdi', null, tier))))),
      is && is.avoid.length > 0 ? [h('dt', { key: 'a' }, 'Moved away from'), h('dd', { key: 'b' }, is.avoid.map((cluster, index) => [index > 0 ? ', ' : '', clusterLink(cluster)]).flat())] : [],
      is && is.residency !== null ? [h('dt', { key: 'c' }, 'May serve'), h('dd', { key: 'd' }, is.residency.map(plain).join(', '))] : [],
      is ? [h('dt', { key: 'e' }, 'Failback'), h('dd', { key: 'f' }, is.failback === 'auto' ? 'by itself' : 'by hand')] : [],
    ),
  );
}

/** @param {State} state @param {Service} service */
function slow(state, service) {
  const all = state.slowest?.filter((request) => request.service === service.name || request.service.startsWith(`${service.name}:`)) ?? [];
  return panel({ id: 'slow', title: 'Slowest requests', note: 'of the last five minutes' }, state.slowest === null ? empty('Not known yet.') : all.length === 0 ? empty('None among the slowest of all services.') : h('ol', { class: 'slow brief' }, all.slice(0, 6).map((request, index) => slowRow(request, String(index), true))));
}

/** @param {State} state @param {Service} service */
function events(state, service) {
  const all = together(state.events.filter((event) => event.service === service.name).reverse());
  return panel({ id: 'events', title: 'What changed' }, all.length === 0 ? empty('Nothing that is remembered.') : h('ol', { class: 'events brief' }, all.slice(0, 8).map((one) => eventRow(one, true))));
}
