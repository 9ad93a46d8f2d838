// The parts without elements, without a browser.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { advance, ask, course, progress } from '../../assets/js/action.js';
import { difference } from '../../assets/js/diff.js';
import { age, duration, percent, plain, rate, short } from '../../assets/js/format.js';
import { LATE_AFTER_MS, begin, lateness, step } from '../../assets/js/live.js';
import { concerns, together, total } from '../../assets/js/model.js';
import { parser } from '../../assets/js/sse.js';
import { inOrder } from '../../assets/js/steady.js';
import { sorted } from '../../assets/js/view-services.js';
import { HOSTILE, rate as rateOf, three, trouble } from './fixtures.js';

const spaced = (text) => text.replaceAll('\u00a0', ' ');

test('figures are short, and never say 0 or 100 where that is not so', () => {
  assert.deepEqual([0, 0.001, 0.42, 9.994, 42.25, 999.4, 999.6, 12_345, 5e6].map(short), ['0', '<0.01', '0.42', '9.99', '42.3', '999', '1k', '12.3k', '5M']);
  assert.deepEqual([950, 1_840, 302_000, 1_200_000, 61e6].map((micros) => spaced(duration(micros))), ['950 µs', '1.84 ms', '302 ms', '1.2 s', '61 s']);
  assert.deepEqual([1, 0.99999, 0.9999, 0].map((share) => spaced(percent(share))), ['100 %', '99.99 %', '99.99 %', '0.00 %']);
  assert.deepEqual([400, 89_000, 100_000, 7_200_000, 2e8].map((ms) => spaced(age(ms))), ['0 s', '89 s', '2 min', '2 h', '56 h']);
  for (const write of [duration, percent, rate, age]) assert.equal(write(null), 'not reported');
});

test('what cannot be seen in a name is written out', () => {
  assert.equal(plain('a\u202eb\u0000c\u200bd\ufeff'), 'a\\u{202e}b\\u{0}c\\u{200b}d\\u{feff}');
  assert.doesNotMatch(plain(HOSTILE), /[\u0000-\u001f\u202e\u200b]/);
  assert.equal(plain('Zürich 東京 🚢'), 'Zürich 東京 🚢');
});

test('server-sent events come whole, however they are cut', () => {
  const text = ': beat\r\n\r\nid: 1\nevent: state\ndata: {"a":\ndata: 1}\n\nevent: bye\rdata:x\r\rdata: lost';
  const wanted = [{ name: 'state', data: '{"a":\n1}' }, { name: 'bye', data: 'x' }];
  for (let size = 1; size < text.length; size += 1) {
    const { take } = parser();
    const events = [];
    for (let at = 0; at < text.length; at += size) events.push(...take(text.slice(at, at + size)));
    assert.deepEqual(events, wanted, `in pieces of ${size}`);
  }
});

test('a connection is live while states come, and backs off when they cannot', () => {
  let live = step(begin(), { is: 'heard' }, 1_000);
  assert.equal(lateness(live, 1_000 + LATE_AFTER_MS - 1), null);
  assert.equal(lateness(live, 1_000 + LATE_AFTER_MS), LATE_AFTER_MS);
  const waits = [];
  for (let times = 0; times < 8; times += 1) {
    live = step(live, { is: 'cut', why: 'gone', jitter: 1 }, 0);
    waits.push(live.retryAt);
    assert.equal(live.phase, 'waiting');
    assert.notEqual(lateness(live, 1_001), null, 'what was heard a moment ago is not live without a connection');
    live = step(live, { is: 'connect' }, 0);
  }
  assert.deepEqual(waits, [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
  assert.equal(step(live, { is: 'cut', why: '', jitter: 0, least: 30_000 }, 0).retryAt, 30_000);
  assert.equal(step(step(live, { is: 'heard' }, 5), { is: 'cut', why: '', jitter: 0 }, 10).retryAt, 260);
  const over = step(live, { is: 'bye', bye: { reason: 'revoked', message: 'no' } }, 0);
  assert.equal(over.phase, 'ended');
  assert.deepEqual(step(over, { is: 'connect' }, 1), over);
  assert.equal(step(live, { is: 'bye', bye: { reason: 'stopping', message: 'upgrade' } }, 0).phase, 'waiting');
});

test('every step of a change, from every stage', () => {
  const plan = { command: '', changes: [], before: null, after: null, warnings: [], revision: 1, basis: 'b' };
  const done = { revision: 2, changes: [], warnings: [], commitMicros: 1, applied: { expected: 2, acknowledged: 1, firstAckMicros: 1, lastAckMicros: null, lagging: [], rejected: [] } };
  const refusal = { error: 'no', hint: null, problems: [] };
  const form = course('switch', 'shop/checkout', { target: 'tokyo' });
  const planned = advance(advance(form, { is: 'asked' }), { is: 'planned', plan });
  const doing = advance(planned, { is: 'confirmed', requestId: 'r1' });
  const lost = advance(doing, { is: 'refused', status: 0, refusal });
  const stages = { form, planning: advance(form, { is: 'asked' }), planned, doing, lost, done: advance(doing, { is: 'done', done }) };
  const steps = { edited: { is: 'edited', field: 'target', value: 'x' }, asked: { is: 'asked' }, planned: { is: 'planned', plan }, back: { is: 'back' }, confirmed: { is: 'confirmed', requestId: 'r2' }, done: { is: 'done', done }, 'refused 409': { is: 'refused', status: 409, refusal }, 'refused 0': { is: 'refused', status: 0, refusal } };
  const table = Object.entries(stages).map(([name, from]) => `${name}: ${Object.entries(steps).map(([what, one]) => `${what} ${advance(from, one).stage.is}`).join(', ')}`);
  assert.deepEqual(table, [
    'form: edited form, asked planning, planned planned, back form, confirmed form, done form, refused 409 form, refused 0 form',
    'planning: edited planning, asked planning, planned planned, back form, confirmed planning, done planning, refused 409 form, refused 0 form',
    'planned: edited planned, asked planning, planned planned, back form, confirmed doing, done planned, refused 409 form, refused 0 form',
    'doing: edited doing, asked planning, planned planned, back form, confirmed doing, done done, refused 409 planned, refused 0 lost',
    'lost: edited lost, asked planning, planned planned, back form, confirmed doing, done lost, refused 409 form, refused 0 form',
    'done: edited done, asked planning, planned planned, back form, confirmed done, done done, refused 409 form, refused 0 form',
  ]);
  assert.equal(advance(lost, { is: 'confirmed', requestId: 'r2' }).requestId, 'r1', 'the same request again');
  assert.equal(advance(planned, { is: 'confirmed', requestId: 'r2' }).requestId, 'r2');
});

test('what a form asks for', () => {
  assert.deepEqual(ask(course('split', 's/a', { 'weight:paris': '90', 'weight:tokyo\nv2': '10', 'weight:rome': '' })), { service: 's/a', backends: [{ cluster: 'paris', weight: 90 }, { cluster: 'tokyo', version: 'v2', weight: 10 }] });
  assert.deepEqual(ask(course('switch', 's/a', { target: 'tokyo\nv2' })), { service: 's/a', cluster: 'tokyo', version: 'v2' });
  assert.deepEqual(ask(course('drain', 'paris')), { cluster: 'paris' });
  assert.deepEqual(ask(course('release', 's/a', { cluster: '' })), { service: 's/a' });
  for (const wrong of ['-1', '1.5', 'x', '1e9']) assert.equal(typeof ask(course('split', 's/a', { 'weight:paris': wrong })), 'string', wrong);
  assert.equal(typeof ask(course('split', 's/a', { 'weight:paris': '0' })), 'string');
});

test('how far a change is comes from whoever knows more', () => {
  const applied = { expected: 6, acknowledged: 4, firstAckMicros: 1, lastAckMicros: 2, lagging: [{ gateway: 'a/b', why: 'x' }], rejected: [] };
  const done = { revision: 14, changes: [], warnings: [], commitMicros: 1, applied };
  const rollout = (revision, acknowledged) => ({ revision, expected: 6, acknowledged, lagging: [], rejected: [] });
  assert.equal(progress(done, rollout(13, 6)).everywhere, false, 'of the revision before');
  assert.equal(progress(done, rollout(14, 6)).everywhere, true);
  assert.equal(progress(done, rollout(14, 3)).acknowledged, 4, 'older than the answer');
  assert.equal(progress(done, undefined).acknowledged, 4);
});

test('lines that differ', () => {
  const before = { service: 'a', backends: [{ cluster: 'paris', weight: 90 }, { cluster: 'tokyo', weight: 10 }] };
  const after = { service: 'a', backends: [{ cluster: 'paris', weight: 50 }, { cluster: 'tokyo', weight: 10 }], sticky: { header: 'x' } };
  assert.deepEqual(difference(before, after).map(({ is, text }) => `${is} ${text}`), ['same service: a', 'same backends:', 'same   - cluster: paris', 'gone     weight: 90', 'new     weight: 50', 'same   - cluster: tokyo', 'same     weight: 10', 'new sticky:', 'new   header: x']);
  assert.ok(difference(null, after).every((line) => line.is === 'new'));
  assert.ok(difference(before, before).every((line) => line.is === 'same'));
});

test('what needs somebody', () => {
  assert.deepEqual(concerns(three()), []);
  const all = concerns(trouble());
  assert.deepEqual(all.map(({ severity, key }) => `${severity} ${key}`), ['error c/tokyo', 'warning s/shop/checkout', 'warning g/frankfurt/gw-2', 'warning l/frankfurt/paris', 'warning rollout']);
  const state = three();
  state.certificates = [{ who: 'operator/ada', expiresUnixMs: state.takenUnixMs - 1 }, { who: 'paris/gw-1', expiresUnixMs: state.takenUnixMs + 3_600_000 }, { who: 'cp-1', expiresUnixMs: state.takenUnixMs + 20 * 3_600_000 }];
  for (const member of state.members) member.role = 'follower';
  assert.deepEqual(concerns(state).map(({ severity, key }) => `${severity} ${key}`), ['error leader', 'error certificates-1', 'warning certificates-2']);
  // A few requests that fail among few say nothing.
  state.members[0].role = 'leader';
  state.certificates = [];
  state.services[0].rate = rateOf(0.2, 1, 1, 50);
  assert.deepEqual(concerns(state), []);
  state.services[0].rate = rateOf(20, 1, 1, 50);
  assert.deepEqual(concerns(state).map(({ severity }) => severity), ['error']);
});

test('what follows from a cluster that is away is not said again', () => {
  const state = three();
  for (const service of state.services) {
    service.state = 'degraded';
    for (const at of service.clusters) if (at.cluster === 'tokyo') at.state = 'down';
  }
  assert.equal(concerns(state).filter(({ key }) => key.startsWith('s/')).length, 4);
  state.clusters[2].state = 'unreachable';
  assert.deepEqual(concerns(state).map(({ key }) => key), ['c/tokyo']);
});

test('what several saw alike is one row', () => {
  const [moved] = three().events.slice(-1);
  const by = (source, later, more = {}) => ({ ...moved, source, unixMs: moved.unixMs + later, ...more });
  const rows = together([by('paris/gw-1', 9_000), by('paris/gw-2', 900), by('paris/gw-1', 800), by('tokyo/gw-1', 700), by('log', 600, { reason: 'ResourceUpdated' }), by('tokyo/gw-1', 500)]);
  assert.deepEqual(rows.map(({ event, sources }) => [event.unixMs - moved.unixMs, sources]), [[9_000, ['paris/gw-1']], [900, ['paris/gw-2', 'paris/gw-1', 'tokyo/gw-1']], [600, ['log']], [500, ['tokyo/gw-1']]]);
});

test('totals leave out who says nothing, and say so', () => {
  const state = three();
  state.clusters[0].entering = null;
  assert.deepEqual([total(state).requestsPerSecond, total(state).silent], [276, 1]);
  for (const cluster of state.clusters) cluster.entering = null;
  assert.deepEqual(total(state), { requestsPerSecond: null, success: null, silent: 3 });
});

test('an order that stands takes in what is new, and lets go what is gone', () => {
  assert.deepEqual(inOrder(['new', 'a', 'b'], ['b', 'gone', 'a'], (item) => item), ['b', 'a', 'new']);
});

test('what is not known is last, whichever way', () => {
  const { services } = three();
  for (const down of [true, false]) assert.equal(sorted(services, { by: 'rate', down }).at(-1).name, 'shop/ledger');
  assert.deepEqual(sorted(services, { by: 'rate', down: true }).map(({ name }) => name), ['shop/web', 'shop/checkout', 'shop/catalog', 'shop/ledger']);
});
