// Changes by keyboard: what they mean is shown before, they are done once, and the page says when they are in force everywhere.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, open } from './browser.js';
import { plan, serve } from './server.js';

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

async function given(t, path, how = {}) {
  const server = await serve();
  const opened = await open(browser, `${server.url}/#/${path}`, how);
  t.after(async () => {
    await opened.close();
    server.close();
  });
  await opened.page.waitForSelector('.actions');
  return { server, ...opened, fine: () => assert.deepEqual(opened.complaints, []) };
}

/** Opens a dialog by the keyboard. */
async function begin(page, id) {
  await page.focus(`#${id}`);
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog[open]');
}

const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);

test('a split: weights, what changes, done, in force everywhere', async (t) => {
  const { page, server, text, fine, picture } = await given(t, 'services/shop%2Fcheckout');
  await begin(page, 'act-split');
  // It begins with how it is.
  assert.equal(await page.$eval('#weight-3', (field) => field.value), '90');
  await page.focus('#weight-6');
  await page.keyboard.down('Control');
  await page.keyboard.press('a');
  await page.keyboard.up('Control');
  await page.keyboard.type('60');
  await text('.weights output', '40');
  await picture('split-form');
  await page.keyboard.press('Enter');
  await text('.plan', 'TrafficSplit shop/checkout is updated');
  await text('.plan', 'meshctl split shop/checkout');
  assert.ok((await page.$$('.diff .gone')).length > 0 && (await page.$$('.diff .new')).length > 0);
  await picture('split-plan');
  assert.deepEqual(server.asks.map(({ dryRun, backends }) => ({ dryRun, backends })), [{ dryRun: true, backends: [{ cluster: 'paris', weight: 90 }, { cluster: 'tokyo', weight: 60 }] }]);
  // The button that does it has the focus: one key.
  assert.equal(await focused(page), 'Split now');
  await page.keyboard.press('Enter');
  await text('.done', 'In force at 4 of 6 gateways');
  await picture('split-underway');
  const deed = server.asks.at(-1);
  assert.equal(deed.dryRun, false);
  assert.equal(deed.basis, 'basis-1');
  assert.match(deed.requestId, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  server.state.rollout = { revision: 14, expected: 6, acknowledged: 6, lagging: [], rejected: [] };
  server.state.revision = 14;
  server.say();
  await text('.done', 'In force at all 6 gateways');
  await page.keyboard.press('Escape');
  await page.waitForFunction(() => !document.querySelector('dialog'));
  assert.equal(await focused(page), 'act-split', 'back where it began');
  fine();
});

test('a dialog keeps the focus, and Escape leaves it without asking anything', async (t) => {
  const { page, server, fine } = await given(t, 'services/shop%2Fcheckout');
  await begin(page, 'act-switch');
  for (let times = 0; times < 12; times += 1) {
    await page.keyboard.press('Tab');
    // Between the last and the first, a browser may pass through its own window.
    assert.ok(await page.evaluate(() => document.activeElement === document.body || document.querySelector('dialog').contains(document.activeElement)));
  }
  await page.keyboard.press('Escape');
  await page.waitForFunction(() => !document.querySelector('dialog'));
  assert.equal(server.asks.length, 0);
  fine();
});

test('a switch whose answer is lost is asked again as the same request', async (t) => {
  const { page, server, text, fine } = await given(t, 'services/shop%2Fcheckout');
  let lost = true;
  server.answer = async (verb, ask, is) => {
    if (ask.dryRun || !lost) return plan(verb, ask, is);
    lost = false;
    return [0, null];
  };
  await begin(page, 'act-switch');
  await page.click('#choice-6');
  await page.keyboard.press('Enter');
  await text('.plan', 'is updated');
  await page.keyboard.press('Enter');
  await text('dialog', 'Whether it was done is not known');
  await page.keyboard.press('Enter');
  await text('.done', 'In force at 4 of 6');
  const deeds = server.asks.filter((ask) => !ask.dryRun);
  assert.equal(deeds.length, 2);
  assert.equal(deeds[0].requestId, deeds[1].requestId);
  fine();
});

test('somebody else was faster: nothing is overwritten, and it is planned again', async (t) => {
  const { page, server, text, fine, picture } = await given(t, 'services/shop%2Fcheckout');
  server.answer = async (verb, ask, is) => (ask.dryRun ? plan(verb, ask, is) : [409, { error: 'TrafficSplit shop/checkout was written meanwhile, by operator/bob.', hint: 'Plan again from how it is now.', problems: [] }]);
  await begin(page, 'act-undo');
  await text('.plan', 'is updated');
  await page.keyboard.press('Enter');
  await text('.refusal', 'was written meanwhile');
  await picture('refused');
  assert.equal(await page.$$eval('dialog .primary', (all) => all.map((one) => one.textContent).join()), 'Plan again');
  await page.click('dialog .primary');
  await page.waitForFunction(() => !document.querySelector('.refusal') && document.querySelector('.plan'));
  fine();
});

test('a cluster is drained, on a phone as well', async (t) => {
  const { page, server, text, fine, picture } = await given(t, 'clusters/tokyo', { width: 360, height: 740 });
  await page.click('#act-drain');
  await text('.plan', 'Cluster tokyo is updated');
  await picture('drain-phone');
  await page.click('dialog .primary');
  await text('.done', 'In force at');
  assert.deepEqual(server.asks.map(({ verb, cluster, dryRun }) => [verb, cluster, dryRun]), [['drain', 'tokyo', true], ['drain', 'tokyo', false]]);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0);
  fine();
});

test('a wrong weight is refused before anything is sent', async (t) => {
  const { page, server, text, fine } = await given(t, 'services/shop%2Fcheckout');
  await begin(page, 'act-split');
  await page.focus('#weight-0');
  await page.keyboard.type('ten');
  await page.keyboard.press('Enter');
  await text('.refusal', 'A weight is a whole number');
  assert.equal(server.asks.length, 0);
  fine();
});
