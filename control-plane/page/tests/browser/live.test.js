// The page of a real member of a real federation, while traffic runs: signing in, a switch by button, a cluster that is killed.
// MESHCTL names the program; without it there is nothing to test.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, open, violations } from './browser.js';
import { traffic, up } from './federation.js';

const { MESHCTL } = process.env;
const skip = MESHCTL ? false : 'MESHCTL names no program';

let browser;
let federation;
let load;

before(async () => {
  if (!MESHCTL) return;
  [browser, federation] = await Promise.all([launch(), up(MESHCTL)]);
  load = traffic(federation.doors.filter(({ cluster }) => cluster !== 'paris'), 'checkout.shop');
});
after(async () => {
  load?.stop();
  await browser?.close();
  await federation?.down();
});

/** A page that signed in by a link of its own. */
async function visit(t, how = {}, args = []) {
  const { url } = await federation.json('dashboard', '--print', ...args);
  const opened = await open(browser, url, how);
  t.after(() => opened.close());
  await opened.text('.connection', 'Live');
  return { ...opened, url };
}

test('a link signs in once, and leads to what the federation is', { skip }, async (t) => {
  const { page, text, until, complaints, picture, url } = await visit(t);
  const secret = new URL(url).hash.slice(1);
  assert.ok(secret.length > 20 && !page.url().includes(secret));
  await until(() => document.querySelectorAll('svg.map a.node').length === 3);
  // Round trips and rates are measured, not made up.
  await until(() => [...document.querySelectorAll('svg.map .rtt')].filter((one) => /\d.*s$/.test(one.textContent)).length === 3);
  await until(() => /[1-9].*\/s/.test([...document.querySelectorAll('#services-first tr')].find((row) => row.textContent.includes('shop/checkout'))?.querySelector('td')?.textContent ?? ''));
  await text('h1', 'All well, traffic flows');
  await picture('live-overview');
  // Another browser with the same link stays outside.
  const other = await open(browser, url);
  t.after(() => other.close());
  await other.text('h1', 'Sign in');
  assert.ok(await other.page.waitForSelector('.refusal'));
  assert.deepEqual([...complaints, ...other.complaints], []);
});

test('a switch by button while traffic runs: everywhere, and nothing is lost', { skip }, async (t) => {
  const { page, text, until, complaints, picture } = await visit(t);
  await page.evaluate(() => (location.hash = '#/services/shop%2Fcheckout'));
  await page.waitForSelector('#act-switch');
  const before = load.seen.failed.length;
  await page.focus('#act-switch');
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog[open]');
  await page.evaluate(() => {
    const choice = [...document.querySelectorAll('.choices label')].find((label) => label.querySelector('.name').textContent === 'tokyo').querySelector('input');
    choice.focus();
    choice.click();
  });
  await page.keyboard.press('Enter');
  await page.waitForSelector('.diff');
  await text('.plan', 'meshctl switch shop/checkout --to tokyo');
  await picture('live-plan');
  // Planning has changed nothing.
  assert.equal((await federation.json('split', 'get', 'shop/checkout').catch(() => null))?.spec ?? null, null);
  await page.evaluate(() => document.querySelector('dialog .primary').click());
  await text('.done', 'In force at all 6 gateways');
  await picture('live-done');
  await page.keyboard.press('Escape');
  await until(() => /tokyo 100/.test(document.querySelector('.tile.broad .bar')?.getAttribute('aria-label')?.replaceAll('\u00a0', ' ') ?? ''));
  await text('.head .actions', 'Undo switch');
  await picture('live-switched');
  assert.deepEqual(load.seen.failed.slice(before), []);
  // It is written by who signed in, and other operators read so.
  const { events } = await federation.json('events', '--service', 'shop/checkout');
  assert.ok(events.some((event) => event.kind === 'write' && /operator\/admin$/.test(event.actor)), JSON.stringify(events.filter((event) => event.kind === 'write')));
  assert.deepEqual(complaints, []);
});

test('a killed cluster is seen, and so is its return', { skip }, async (t) => {
  const { page, text, until, complaints, picture } = await visit(t);
  await text('h1', 'traffic flows');
  await page.evaluate(() => {
    const watch = new MutationObserver(() => {
      if (!window.seen && document.querySelector('.needs')?.textContent.includes('paris is unreachable')) window.seen = Date.now();
    });
    watch.observe(document.getElementById('page'), { subtree: true, childList: true, characterData: true, attributes: true });
  });
  const killed = Date.now();
  await federation.ok('drill', 'kill', 'paris', '--for', '15s', '-o', 'json');
  const answered = Date.now();
  await text('.needs', 'paris is unreachable');
  const seen = await page.evaluate(() => window.seen);
  t.diagnostic(`seen ${seen - killed} ms after the command began, which took ${answered - killed} ms`);
  await text('h1', 'broken');
  await text('svg.map a.node', 'unreachable');
  await picture('live-killed');
  await text('.events', 'paris');
  await until(() => !document.querySelector('.needs')?.textContent.includes('paris is unreachable'));
  await picture('live-back');
  assert.deepEqual(complaints, []);
});

test('a reader looks and changes nothing, whatever the page is made to send', { skip }, async (t) => {
  const { page, text, complaints } = await visit(t, { width: 360, height: 740 }, ['--read-only']);
  await page.evaluate(() => (location.hash = '#/services/shop%2Fweb'));
  await text('.actions', 'Your role may look, not change anything.');
  const status = await page.evaluate(async () => {
    const headers = { 'content-type': 'application/json', 'x-archipelago-page': '1' };
    const response = await fetch('/api/actions/drain', { method: 'POST', headers, body: JSON.stringify({ cluster: 'tokyo', dryRun: true }) });
    return response.status;
  });
  assert.equal(status, 403);
  assert.deepEqual(complaints, []);
});

test('axe-core finds nothing in the page of a running federation', { skip }, async (t) => {
  const { page, complaints, text } = await visit(t, { dark: true });
  for (const view of ['overview', 'services/shop%2Fcheckout', 'gateways', 'events', 'slow', 'clusters/tokyo']) {
    await page.evaluate((hash) => (location.hash = hash), `#/${view}`);
    await text('nav a[aria-current]', { overview: 'Overview', 'services/shop%2Fcheckout': 'Services', gateways: 'Gateways', events: 'Events', slow: 'Slow', 'clusters/tokyo': 'Clusters' }[view]);
    assert.deepEqual(await violations(page), [], view);
  }
  assert.deepEqual(complaints, []);
});
