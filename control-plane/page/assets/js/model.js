// What follows from a state: totals, what needs somebody, in which order things are listed. Pure, and free of elements.

import { counted, duration, known, percent, plain } from './format.js';

/** @import { Cluster, Event, Gateway, Link, Me, Rate, Service, ServiceCluster, State } from './contract.js' */

/** @typedef {'error' | 'warning' | 'info'} Severity */

/**
 * @typedef {object} Concern
 * @property {string} key
 * @property {Severity} severity
 * @property {string} title
 * @property {string} detail
 * @property {string} href
 * @property {number | null} sinceUnixMs
 */

/**
 * @typedef {object} Total
 * @property {number | null} requestsPerSecond
 * @property {number | null} success    0 to 1, of the clusters that report it.
 * @property {number} silent            Clusters that do not report.
 */

// Below this share of successes, somebody wants to know; below that, it is an outage. Requests that fail by themselves are usually rarer.
const SUCCESS_WARNING = 0.99;
const SUCCESS_ERROR = 0.9;
// One failed request among five says nothing.
const RATE_JUDGED_MIN = 0.5;
// Certificates of 48 hours are renewed after 12: with these left, that has failed for 12 hours, or a day. The alert MeshCertificateExpiring
// says the latter.
const CERTIFICATE_WARNING_MS = 24 * 3_600_000;
const CERTIFICATE_ERROR_MS = 12 * 3_600_000;

/** @param {State} state @returns {Total} */
export function total(state) {
  let requests = 0;
  let judged = 0;
  let succeeded = 0;
  let reporting = 0;
  for (const cluster of state.clusters) {
    const rate = cluster.entering;
    if (rate === null) continue;
    reporting += 1;
    requests += rate.requestsPerSecond;
    if (rate.successPercent !== null) {
      judged += rate.requestsPerSecond;
      succeeded += (rate.requestsPerSecond * rate.successPercent) / 100;
    }
  }
  return {
    requestsPerSecond: reporting > 0 ? requests : null,
    success: judged > 0 ? succeeded / judged : null,
    silent: state.clusters.length - reporting,
  };
}

/** The service whose clients wait longest. @param {State} state @returns {{ name: string, p99Micros: number } | null} */
export function slowestService(state) {
  let worst = null;
  for (const service of state.services) {
    const p99 = service.rate?.p99Micros;
    if (known(p99) && (worst === null || p99 > worst.p99Micros)) worst = { name: service.name, p99Micros: p99 };
  }
  return worst;
}

/**
 * What needs somebody, the worst first. What follows from something else that is named is left out: a cluster that is away has no tunnels.
 * @param {State} state
 * @returns {Concern[]}
 */
export function concerns(state) {
  /** @type {Concern[]} */
  const out = [];
  /** @type {(severity: Severity, key: string, title: string, detail: string, href: string, since?: number | null) => void} */
  const add = (severity, key, title, detail, href, since = null) => {
    out.push({ severity, key, title, detail, href, sinceUnixMs: since });
  };

  const away = new Set(state.clusters.filter((cluster) => cluster.state === 'unreachable').map((cluster) => cluster.name));
  for (const service of state.services) ofService(service, away, add);
  for (const cluster of state.clusters) {
    const href = to('clusters', cluster.name);
    const name = plain(cluster.name);
    if (cluster.state === 'unreachable') {
      add('error', `c/${cluster.name}`, `Cluster ${name} is unreachable`, 'None of its gateways and no agent is connected.', href);
    } else if (cluster.state === 'drained') {
      add('info', `c/${cluster.name}`, `Cluster ${name} is drained`, 'Others serve what it would serve.', href);
    } else if (cluster.agent === 'disconnected') {
      add('warning', `a/${cluster.name}`, `The agent of ${name} is not connected`, 'Its services are as they were last reported.', href);
    }
    if (cluster.problems.length > 0) {
      add('warning', `cp/${cluster.name}`, `Cluster ${name} reports what cannot be used`, cluster.problems.map(plain).join(' · '), href);
    }
    for (const gateway of cluster.gateways) ofGateway(cluster, gateway, add);
  }
  for (const link of state.links) {
    if (away.has(link.a) || away.has(link.b)) continue;
    const pair = `${plain(link.a)} and ${plain(link.b)}`;
    const detail = `${link.tunnelsUp} of ${counted(link.tunnels, 'tunnel')} up. ${link.broken.map(plain).join(' · ')}`;
    if (link.state === 'down') add('error', `l/${link.a}/${link.b}`, `No tunnel between ${pair}`, detail, to('clusters', link.a));
    if (link.state === 'degraded') add('warning', `l/${link.a}/${link.b}`, `Fewer tunnels between ${pair}`, detail, to('clusters', link.a));
  }
  ofRollout(state, away, add);
  ofMembers(state, add);
  ofCertificates(state, add);
  const rank = { error: 0, warning: 1, info: 2 };
  return out.sort((x, y) => rank[x.severity] - rank[y.severity]);
}

/** @param {Service} service @param {Set<string>} away @param {(severity: Severity, key: string, title: string, detail: string, href: string, since?: number | null) => void} add */
function ofService(service, away, add) {
  const href = to('services', service.name);
  const name = plain(service.name);
  const why = service.reasons[0];
  const because = why ? plain(why.text) : '';
  const key = `s/${service.name}`;
  const success = service.rate?.successPercent;
  if (service.state === 'down') {
    add('error', key, `${name} is down`, because || 'No cluster can serve it.', href, why?.sinceUnixMs);
  } else if (known(success) && success / 100 < SUCCESS_WARNING && (service.rate?.requestsPerSecond ?? 0) >= RATE_JUDGED_MIN) {
    const severity = success / 100 < SUCCESS_ERROR ? 'error' : 'warning';
    add(severity, key, `${name} fails: ${percent(success / 100)} succeed`, because || 'Of the requests of the last seconds.', href, why?.sinceUnixMs);
  } else {
    const loud = service.reasons.find((reason) => reason.severity !== 'info');
    // Of clusters that are away it is said already.
    const unwell = service.clusters.filter((at) => (at.state === 'degraded' || at.state === 'down') && !away.has(at.cluster));
    if (loud) add(loud.severity, key, `${name} is served by others`, plain(loud.text), href, loud.sinceUnixMs);
    else if (unwell.length > 0) add('warning', key, `${name} has fewer endpoints`, unwell.map(endpoints).join(' · '), href);
  }
}

/** @param {ServiceCluster} at */
export function endpoints(at) {
  const failure = at.lastFailure === null ? '' : `: ${plain(at.lastFailure)}`;
  return `${plain(at.cluster)} ${at.ready} of ${at.total} ready${failure}`;
}

/** @param {Cluster} cluster @param {Gateway} gateway @param {(severity: Severity, key: string, title: string, detail: string, href: string) => void} add */
function ofGateway(cluster, gateway, add) {
  const href = to('gateways');
  const name = plain(gateway.key);
  if (gateway.state === 'disconnected' && cluster.state !== 'unreachable' && cluster.state !== 'pending') {
    add('warning', `g/${gateway.key}`, `Gateway ${name} is not connected`, 'It carries traffic by what it knows, and learns of no change.', href);
  } else if (gateway.state === 'rejected') {
    add('error', `g/${gateway.key}`, `Gateway ${name} rejects what it is given`, plain(gateway.error), href);
  }
  if (gateway.problems.length > 0) {
    add('warning', `gp/${gateway.key}`, `Gateway ${name} has problems`, gateway.problems.map(plain).join(' · '), href);
  }
}

/** @param {State} state @param {Set<unknown>} away @param {(severity: Severity, key: string, title: string, detail: string, href: string) => void} add */
function ofRollout(state, away, add) {
  const { revision, lagging } = state.rollout;
  // Gateways that are not connected are named above; what is left has heard of the revision and does not run it.
  const connected = new Map(state.clusters.flatMap((cluster) => cluster.gateways.map((gateway) => [gateway.key, gateway.state !== 'disconnected'])));
  const late = lagging.filter(({ gateway }) => connected.get(gateway) !== false && !away.has(gateway.split('/')[0]));
  if (late.length > 0) {
    const who = late.slice(0, 4).map(({ gateway, why }) => `${plain(gateway)} ${plain(why)}`);
    const more = late.length > 4 ? ` and ${late.length - 4} more` : '';
    add('warning', 'rollout', `${counted(late.length, 'gateway lags', 'gateways lag')} behind revision ${revision}`, who.join(' · ') + more, to('gateways'));
  }
}

/** @param {State} state @param {(severity: Severity, key: string, title: string, detail: string, href: string) => void} add */
function ofMembers(state, add) {
  const href = to('gateways');
  if (state.members.length > 0 && !state.members.some((member) => member.role === 'leader')) {
    add('error', 'leader', 'The control plane has no leader', 'Nothing can be changed. Traffic does not need it.', href);
  }
  for (const member of state.members) {
    const name = plain(member.name);
    if (member.role === 'unreachable') add('warning', `m/${member.id}`, `Control plane member ${name} is unreachable`, plain(member.address), href);
    if (member.problem !== null) add('warning', `mp/${member.id}`, `Control plane member ${name} has a problem`, plain(member.problem), href);
  }
}

/** @param {State} state @param {(severity: Severity, key: string, title: string, detail: string, href: string) => void} add */
function ofCertificates(state, add) {
  // Operators renew theirs when they come back.
  const processes = state.certificates.filter(({ who }) => !who.startsWith('operator/'));
  const left = processes.map(({ who, expiresUnixMs }) => ({ who: plain(who), left: expiresUnixMs - state.takenUnixMs }));
  const name = (/** @type {typeof left} */ some) => some.slice(0, 5).map(({ who }) => who).join(', ') + (some.length > 5 ? ` and ${some.length - 5} more` : '');
  const expired = left.filter((one) => one.left < CERTIFICATE_ERROR_MS);
  const soon = left.filter((one) => one.left >= CERTIFICATE_ERROR_MS && one.left < CERTIFICATE_WARNING_MS);
  if (expired.length > 0) add('error', 'certificates-1', `${counted(expired.length, 'certificate')} expired, or about to`, name(expired), to('gateways'));
  if (soon.length > 0) add('warning', 'certificates-2', `${counted(soon.length, 'certificate')} not renewed in time`, name(soon), to('gateways'));
}

/** How a service is, worst first: for sorting. @param {Service} service */
export function illness(service) {
  if (service.state === 'down') return 0;
  if (service.state === 'degraded' || service.reasons.some((reason) => reason.severity !== 'info')) return 1;
  const success = service.rate?.successPercent;
  return known(success) && success / 100 < SUCCESS_WARNING ? 1 : 2;
}

/** An address within the page. @param {string} view @param {string} [name] */
export function to(view, name) {
  return name === undefined ? `#/${view}` : `#/${view}/${encodeURIComponent(name)}`;
}

/** Why nothing can be changed by whoever looks; null: it can. @param {Me | null} me */
export function forbidden(me) {
  return me?.role === 'operator' ? null : 'Your role may look, not change anything.';
}

/** Links by their two clusters. @param {State} state @returns {(x: string, y: string) => Link | undefined} */
export function linksByPair(state) {
  const pairs = new Map(state.links.map((link) => [`${link.a}\n${link.b}`, link]));
  return (x, y) => pairs.get(x < y ? `${x}\n${y}` : `${y}\n${x}`);
}

/** @param {Link} link @param {string} from @returns {Rate | null} */
export function rateFrom(link, from) {
  return link.a === from ? link.aToB : link.bToA;
}

/** What a link is like, in one line. @param {Link} link */
export function linkWords(link) {
  if (link.state === 'not reported') return 'not reported';
  const parts = [`${link.tunnelsUp} of ${counted(link.tunnels, 'tunnel')} up`, `RTT ${duration(link.rttMicros)}`];
  parts.push(known(link.lossPercent) ? `${link.lossPercent.toFixed(link.lossPercent < 1 ? 2 : 1)} % loss` : 'loss not reported');
  if (link.transports.length > 0) parts.push(link.transports.map(plain).join(', '));
  return parts.join(' · ');
}

/**
 * One row for what several saw alike: each gateway says for itself that traffic moved. Newest first.
 * @param {Event[]} events   Newest first.
 * @returns {{ event: Event, sources: string[] }[]}
 */
export function together(events) {
  /** @type {{ event: Event, sources: string[] }[]} */
  const out = [];
  for (const event of events) {
    const same = out.findLast((one) => one.event.reason === event.reason && one.event.message === event.message && one.event.revision === event.revision && one.event.unixMs - event.unixMs < TOGETHER_MS);
    if (same && !same.sources.includes(event.source)) same.sources.push(event.source);
    else out.push({ event, sources: [event.source] });
  }
  return out;
}

// Clocks of gateways differ by less, and what happens again to one of them is its own row.
const TOGETHER_MS = 5_000;

/** Clusters by region, both by name. @param {State} state @returns {{ region: string, clusters: Cluster[] }[]} */
export function regions(state) {
  /** @type {Map<string, Cluster[]>} */
  const out = new Map();
  for (const cluster of state.clusters) out.set(cluster.region, [...(out.get(cluster.region) ?? []), cluster]);
  return [...out].map(([region, clusters]) => ({ region, clusters })).sort((x, y) => (x.region < y.region ? -1 : 1));
}
