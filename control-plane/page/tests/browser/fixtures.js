// States as a member would say them: of three clusters, of a hundred, of a federation in trouble, and with names that mean harm.

/** @import { Cluster, Event, Flow, Gateway, Link, Me, Rate, Service, SlowRequest, State } from '../../assets/js/contract.js' */

export const START = Date.UTC(2026, 10, 30, 3, 12, 40);

/** The same numbers on every run. @param {number} seed */
function random(seed) {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** @param {number} requestsPerSecond @param {number} [p50] @param {number} [p99] @param {number} [success] @returns {Rate} */
export function rate(requestsPerSecond, p50 = 1840, p99 = 9200, success = 100) {
  const some = requestsPerSecond > 0;
  return { requestsPerSecond, successPercent: some ? success : null, p50Micros: some ? p50 : null, p99Micros: some ? p99 : null };
}

/** @param {string} cluster @param {number} index @param {number} revision @returns {Gateway} */
function gateway(cluster, index, revision) {
  return { name: `gw-${index}`, key: `${cluster}/gw-${index}`, state: 'synced', revision, lastSeenUnixMs: START - 400, softwareVersion: '0.9.0', workers: 2, error: null, problems: [] };
}

/** @param {string} name @param {string} region @param {number} entering @param {number} revision @returns {Cluster} */
function cluster(name, region, entering, revision) {
  return { name, region, state: 'active', agent: 'connected', gateways: [gateway(name, 1, revision), gateway(name, 2, revision)], entering: rate(entering), serving: rate(entering * 1.1), problems: [] };
}

/** @param {string} a @param {string} b @param {number} rttMicros @param {number} there @param {number} back @returns {Link} */
function link(a, b, rttMicros, there, back) {
  return { a, b, state: 'up', tunnels: 8, tunnelsUp: 8, rttMicros, lossPercent: 0, transports: ['quic'], aToB: rate(there, rttMicros * 1.1, rttMicros * 1.6), bToA: rate(back, rttMicros * 1.1, rttMicros * 1.6), broken: [] };
}

/** @param {string} name @param {string[]} clusters @param {Flow[]} flows @returns {Service} */
function service(name, clusters, flows) {
  const all = flows.reduce((sum, flow) => sum + flow.rate.requestsPerSecond, 0);
  return {
    name,
    hosts: [name.split('/').reverse().join('.')],
    ports: [{ name: '', port: 80, protocol: 'http', clusters }],
    headless: false,
    state: 'ready',
    clusters: clusters.map((at) => ({ cluster: at, state: 'ready', ready: 4, total: 4, unknown: 0, versions: ['v1'], weightPercent: null, lastFailure: null })),
    rate: rate(all, 1900, 48_000),
    flows,
    versions: clusters.map((at) => ({ cluster: at, version: 'v1', rate: rate(all / clusters.length, 1100, 8_000), sharePercent: 100 / clusters.length })),
    split: null,
    failover: null,
    reasons: [],
  };
}

/** @param {string} from @param {string | null} to @param {number} requests @param {number} share @returns {Flow} */
function flow(from, to, requests, share) {
  return { from, to, rate: rate(requests, from === to ? 1200 : 190_000, from === to ? 7_800 : 302_000, to === null ? 0 : 99.98), sharePercent: share };
}

/** @param {number} id @param {number} ago @param {Partial<Event>} what @returns {Event} */
function event(id, ago, what) {
  return { key: `log/0/${id}`, unixMs: START - ago, firstUnixMs: START - ago, count: 1, severity: 'info', kind: 'write', reason: 'ResourceUpdated', message: 'A resource was changed.', service: null, cluster: null, gateway: null, subject: null, actor: null, revision: null, source: 'log', ...what };
}

/** @param {number} total @param {string} service @param {string} from @param {string} to @param {Record<string, number>} hops @returns {SlowRequest} */
function slow(total, service, from, to, hops) {
  return {
    service, totalMicros: total, endedUnixMs: START - total / 20, status: 200, flags: '', from: `${from}/gw-1`, cluster: to, endpoint: '10.40.2.17:8080', method: 'POST', path: `/cart/${total % 977}/pay`, traceId: '4bf92f3577b34da6a3ce929d0e0e4736',
    hops: Object.entries(hops).map(([hop, micros]) => ({ hop, at: hop.startsWith('tunnel') ? `${from}/gw-1 to ${to}/gw-2` : `${to}/gw-2`, micros })),
  };
}

const DAY = 86_400_000;

/** @param {Cluster[]} clusters @param {Link[]} links @param {Service[]} services @param {number} revision @returns {State} */
function state(clusters, links, services, revision) {
  const gateways = clusters.flatMap((one) => one.gateways.map((is) => is.key));
  return {
    takenUnixMs: START,
    federation: 'mesh.example',
    member: 1,
    revision,
    members: [1, 2, 3].map((id) => ({ id, name: `cp-${id}`, role: id === 1 ? 'leader' : 'follower', address: `10.0.0.${id}:7400`, term: 4, appliedIndex: 1824, problem: null })),
    clusters,
    links,
    services,
    servicesLeftOff: 0,
    rollout: { revision, expected: gateways.length, acknowledged: gateways.length, lagging: [], rejected: [] },
    certificates: [{ who: 'operator/ada', expiresUnixMs: START + 0.3 * DAY }, ...['cp-1', 'cp-2', 'cp-3', ...gateways].map((who, index) => ({ who, expiresUnixMs: START + 1.55 * DAY + index * 700_000 }))].slice(0, 200),
    events: [],
    slowest: [],
    windowSeconds: 2,
    missing: [],
  };
}

/** Three clusters, all well, with a split, and some that went by. @returns {State} */
export function three() {
  const clusters = [cluster('frankfurt', 'eu-central', 138, 13), cluster('paris', 'eu-west', 212, 13), cluster('tokyo', 'ap-northeast', 64, 13)];
  const links = [link('frankfurt', 'paris', 8_900, 12, 3.2), link('frankfurt', 'tokyo', 221_000, 41, 0), link('paris', 'tokyo', 238_000, 57, 0.4)];
  const names = clusters.map((one) => one.name);
  const checkout = service('shop/checkout', names, [flow('paris', 'paris', 98, 90), flow('paris', 'tokyo', 10.9, 10), flow('frankfurt', 'paris', 44, 90), flow('frankfurt', 'tokyo', 4.9, 10), flow('tokyo', 'paris', 17, 90), flow('tokyo', 'tokyo', 1.9, 10)]);
  checkout.split = { name: 'checkout', revision: 13, origin: null, sticky: 'header x-user', routes: [{ match: 'header x-preview is pr-42', backends: [{ cluster: 'tokyo', version: 'v2', weight: 1, sharePercent: 100 }] }], backends: [{ cluster: 'paris', version: null, weight: 90, sharePercent: 90 }, { cluster: 'tokyo', version: null, weight: 10, sharePercent: 10 }], canUndo: true };
  checkout.failover = { name: 'checkout', revision: 9, origin: null, order: ['clusters @local', 'regions @same', 'clusters frankfurt'], avoid: [], residency: ['eu-west', 'eu-central', 'ap-northeast'], failback: 'auto' };
  checkout.reasons = [{ sinceUnixMs: START - 240_000, severity: 'info', reason: 'Split', text: '90 % go to paris, 10 % to tokyo, because an operator wants that.' }];
  for (const at of checkout.clusters) at.versions = ['v1', 'v2'];
  checkout.versions = [{ cluster: 'paris', version: 'v1', rate: rate(120, 1100, 7_900), sharePercent: 68 }, { cluster: 'paris', version: 'v2', rate: rate(39, 1200, 8_100), sharePercent: 22 }, { cluster: 'tokyo', version: 'v1', rate: rate(17.7, 1300, 9_400), sharePercent: 10 }];
  const web = service('shop/web', names, names.map((at, index) => flow(at, at, [82, 101, 45][index] ?? 0, 100)));
  const catalog = service('shop/catalog', names, [flow('paris', 'paris', 9, 100), flow('frankfurt', 'frankfurt', 6.2, 100)]);
  const ledger = service('shop/ledger', ['paris', 'tokyo'], []);
  ledger.ports = [{ name: '', port: 9000, protocol: 'tcp', clusters: ['paris', 'tokyo'] }];
  ledger.rate = null;
  ledger.flows = null;
  ledger.versions = null;
  const all = state(clusters, links, [catalog, checkout, ledger, web], 13);
  all.events = [
    event(1, 5_400_000, { kind: 'membership', reason: 'LeaderElected', message: 'cp-1 became the leader in term 4.', source: 'cp-1' }),
    event(2, 3_900_000, { kind: 'failover', severity: 'warning', reason: 'Failover', message: 'tokyo cannot serve shop/web: all endpoints are away. paris and frankfurt serve instead.', service: 'shop/web', cluster: 'tokyo', gateway: 'paris/gw-1', source: 'paris/gw-1' }),
    event(3, 3_840_000, { kind: 'failover', reason: 'Failback', message: 'tokyo serves shop/web again.', service: 'shop/web', cluster: 'tokyo', gateway: 'paris/gw-1', source: 'paris/gw-1' }),
    event(4, 1_200_000, { kind: 'ejection', severity: 'warning', reason: 'EndpointEjected', message: '10.40.2.17:8080 failed 5 requests in a row and sits out for 10 s.', service: 'shop/checkout', cluster: 'tokyo', gateway: 'tokyo/gw-2', subject: '10.40.2.17:8080', source: 'tokyo/gw-2', count: 3 }),
    event(5, 240_000, { reason: 'ResourceUpdated', message: 'TrafficSplit shop/checkout was changed.', service: 'shop/checkout', subject: 'TrafficSplit shop/checkout', actor: 'spiffe://mesh.example/operator/ada', revision: 13 }),
    event(6, 239_000, { kind: 'failover', reason: 'TrafficMoved', message: '10 % of the requests for shop/checkout go to tokyo.', service: 'shop/checkout', cluster: 'tokyo', gateway: 'frankfurt/gw-1', source: 'frankfurt/gw-1', revision: 13 }),
  ];
  all.slowest = [
    slow(803_000, 'shop/checkout', 'paris', 'tokyo', { queue: 240, 'tunnel-wait': 1_200, tunnel: 240_400, 'far-queue': 260, connect: 900, 'first-byte': 540_000, body: 20_000 }),
    slow(412_000, 'shop/checkout', 'frankfurt', 'tokyo', { queue: 180, tunnel: 221_000, 'far-queue': 300, 'first-byte': 190_000, body: 520 }),
    slow(402_300, 'shop/web', 'tokyo', 'tokyo', { queue: 90, lost: 250_000, connect: 1_100, 'first-byte': 150_000, body: 1_110 }),
    { ...slow(301_000, 'shop/catalog', 'paris', 'paris', {}), hops: null, status: 503, flags: 'UF' },
    slow(96_000, 'shop/web', 'frankfurt', 'frankfurt', { queue: 120, upload: 88_000, 'first-byte': 7_000, body: 880 }),
  ];
  return all;
}

/** The same at three in the morning: tokyo is away, a gateway lags, an endpoint is down, and one gateway is of an old build. @returns {State} */
export function trouble() {
  const all = three();
  const [frankfurt, paris, tokyo] = all.clusters;
  if (!frankfurt || !paris || !tokyo) throw new Error('three clusters');
  tokyo.state = 'unreachable';
  tokyo.agent = 'disconnected';
  tokyo.entering = null;
  tokyo.serving = null;
  for (const gateway of tokyo.gateways) Object.assign(gateway, { state: 'disconnected', lastSeenUnixMs: START - 14_000 });
  Object.assign(paris.gateways[1] ?? {}, { state: 'syncing', revision: 12 });
  Object.assign(frankfurt.gateways[1] ?? {}, { softwareVersion: null, workers: null, revision: null, state: 'disconnected', lastSeenUnixMs: null });
  for (const one of all.links) {
    if (one.b !== 'tokyo') continue;
    Object.assign(one, { state: 'down', tunnelsUp: 0, rttMicros: null, lossPercent: null, aToB: rate(0), bToA: null, broken: ['paris/gw-1 to tokyo/gw-1 is dead', 'paris/gw-2 to tokyo/gw-2 is dead'] });
  }
  Object.assign(all.links[0] ?? {}, { state: 'degraded', tunnelsUp: 6, lossPercent: 1.4, broken: ['frankfurt/gw-2 to paris/gw-1 is dialing'] });
  const checkout = all.services[1];
  if (checkout) {
    checkout.state = 'degraded';
    checkout.flows = [flow('paris', 'paris', 108.9, 97), flow('paris', null, 3.4, 3), flow('frankfurt', 'paris', 48.9, 100)];
    checkout.rate = rate(161, 2_100, 61_000, 97.888);
    checkout.clusters = checkout.clusters.map((at) => (at.cluster === 'tokyo' ? { ...at, state: 'down', ready: 0, lastFailure: 'GET /healthz: connection refused' } : at));
    checkout.reasons = [{ sinceUnixMs: START - 14_000, severity: 'warning', reason: 'Failover', text: 'tokyo is unreachable; paris serves what it would serve.' }, ...checkout.reasons];
  }
  all.rollout = { revision: 13, expected: 6, acknowledged: 2, lagging: [{ gateway: 'paris/gw-2', why: 'at revision 12' }, { gateway: 'tokyo/gw-1', why: 'not connected' }, { gateway: 'tokyo/gw-2', why: 'not connected' }, { gateway: 'frankfurt/gw-2', why: 'not connected' }], rejected: [{ gateway: 'frankfurt/gw-1', resource: 'shop/ledger', why: 'feature tcp.retry is not known' }] };
  all.missing = [{ about: 'traffic', who: 'tokyo/gw-1', why: 'not connected' }, { about: 'traffic', who: 'tokyo/gw-2', why: 'not connected' }, { about: 'slowest', who: 'frankfurt/gw-2', why: 'not reported: a build from before' }];
  all.events.push(event(7, 14_000, { kind: 'failover', severity: 'warning', reason: 'ClusterUnreachable', message: 'None of the gateways of tokyo can be reached.', cluster: 'tokyo', gateway: 'paris/gw-1', source: 'paris/gw-1' }), event(8, 13_800, { kind: 'membership', severity: 'error', reason: 'ClusterDisconnected', message: 'Neither a gateway nor the agent of tokyo is connected.', cluster: 'tokyo', source: 'cp-1' }));
  return all;
}

const REGIONS = ['af-south', 'ap-northeast', 'ap-south', 'eu-central', 'eu-north', 'eu-west', 'sa-east', 'us-central', 'us-east', 'us-west'];

/** A hundred clusters, ten of them per region, four hundred services. @param {number} [count] @returns {State} */
export function hundred(count = 100) {
  const dice = random(7);
  const clusters = Array.from({ length: count }, (_, index) => {
    const region = REGIONS[index % REGIONS.length] ?? '';
    return cluster(`${region}-${String(Math.floor(index / REGIONS.length) + 1).padStart(2, '0')}`, region, 20 + dice() * 400, 412);
  }).sort((x, y) => (x.name < y.name ? -1 : 1));
  const links = [];
  for (const [i, a] of clusters.entries()) {
    for (const b of clusters.slice(i + 1)) {
      const near = a.region === b.region;
      const busy = near ? dice() < 0.8 : dice() < 0.12;
      const one = link(a.name, b.name, near ? 1_000 + dice() * 9_000 : 20_000 + dice() * 210_000, busy ? dice() ** 3 * 800 : 0, busy ? dice() ** 3 * 300 : 0);
      one.lossPercent = dice() < 0.97 ? dice() * 0.02 : dice() * 4;
      links.push(one);
    }
  }
  const gone = clusters[41];
  if (gone) {
    Object.assign(gone, { state: 'unreachable', agent: 'disconnected', entering: null, serving: null });
    for (const gateway of gone.gateways) gateway.state = 'disconnected';
    for (const one of links) if (one.a === gone.name || one.b === gone.name) Object.assign(one, { state: 'down', tunnelsUp: 0, rttMicros: null, lossPercent: null });
  }
  Object.assign(clusters[77] ?? {}, { state: 'drained' });
  Object.assign(links[600] ?? {}, { state: 'degraded', tunnelsUp: 5, broken: ['one is dialing'] });
  for (const one of links.slice(900, 930)) Object.assign(one, { state: 'not reported', rttMicros: null, lossPercent: null, aToB: null, bToA: null });
  const services = Array.from({ length: 400 }, (_, index) => {
    const at = clusters.filter(() => dice() < 0.12).map((one) => one.name);
    const some = at.length > 0 ? at : [clusters[0]?.name ?? ''];
    const flows = some.map((where) => flow(where, dice() < 0.8 ? where : (some[0] ?? null), 300 / (1 + index) + dice() * 3, 100));
    return service(`team-${String(index % 20).padStart(2, '0')}/service-${String(index).padStart(3, '0')}`, some, flows);
  }).sort((x, y) => (x.name < y.name ? -1 : 1));
  const all = state(clusters, links, services, 412);
  all.servicesLeftOff = 120;
  all.rollout = { revision: 412, expected: count * 2, acknowledged: count * 2 - 3, lagging: [{ gateway: `${clusters[12]?.name}/gw-2`, why: 'at revision 411' }, ...(gone?.gateways ?? []).map((is) => ({ gateway: is.key, why: 'not connected' }))], rejected: [] };
  Object.assign(clusters[12]?.gateways[1] ?? {}, { state: 'syncing', revision: 411 });
  all.events = Array.from({ length: 200 }, (_, index) => {
    const of = services[(index * 37) % services.length];
    const loud = dice() < 0.2;
    return event(index, (200 - index) * 47_000, loud ? { kind: 'ejection', severity: 'warning', reason: 'EndpointEjected', message: 'An endpoint failed several requests in a row.', service: of?.name ?? null, cluster: of?.clusters[0]?.cluster ?? null, source: `${of?.clusters[0]?.cluster}/gw-1` } : { message: `TrafficSplit ${of?.name} was changed.`, service: of?.name ?? null, actor: 'spiffe://mesh.example/operator/ada', revision: 212 + index });
  });
  all.slowest = Array.from({ length: 50 }, (_, index) => slow(Math.round(2_400_000 / (index + 1)), services[(index * 13) % 400]?.name ?? '', clusters[index]?.name ?? '', clusters[(index * 7) % count]?.name ?? '', { queue: 200, tunnel: 90_000 / (index + 1), 'first-byte': 2_200_000 / (index + 1), body: 100_000 / (index + 1) }));
  all.missing = (gone?.gateways ?? []).map((is) => ({ about: /** @type {const} */ ('traffic'), who: is.key, why: 'not connected' }));
  return all;
}

/** What somebody may be called who means harm. */
export const HOSTILE = '<img src=x onerror="window.harmed=1">"\'`</script><script>window.harmed=2</script><style>*{display:none}</style>{{7*7}}${7*7}\u202etxt.exe\u200b\u001b[31mred\u0000&lt;b&gt;';

/** Every text of a state replaced with a hostile one, but for those out of closed sets. @param {State} state @returns {State} */
export function hostile(state) {
  // Names that stand for each other stay different and the same everywhere.
  const closed = new Set(['state', 'role', 'agent', 'severity', 'about', 'failback', 'key']);
  /** @type {(value: any, field: string) => any} */
  const walk = (value, field) => {
    if (Array.isArray(value)) return value.map((one) => walk(one, field));
    if (typeof value === 'string') return closed.has(field) ? value : `${value}${HOSTILE}`;
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, walk(inner, key)]));
  };
  return walk(state, '');
}

/** @param {'operator' | 'reader'} role @returns {Me} */
export function me(role) {
  return { identity: `spiffe://mesh.example/${role}/ada`, name: 'ada', role, expiresUnixMs: START + 8 * 3_600_000, member: 1, federation: 'mesh.example' };
}
