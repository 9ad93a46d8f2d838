// The page in a real browser, against recorded states: what it shows, what it never does, and the truth about its connection.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, open } from './browser.js';
import { HOSTILE, hostile, hundred, me, three, trouble } from './fixtures.js';
import { SECRET, serve } from './server.js';

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

/** A server and a page of it, closed at the end; fails for any error in the page. */
async function given(t, how, path = '/', prepare = (_) => {}) {
  const server = await serve();
  prepare(server);
  const opened = await open(browser, server.url + path, how);
  t.after(async () => {
    await opened.close();
    server.close();
  });
  return { server, ...opened, fine: () => assert.deepEqual(opened.complaints, []) };
}

test('shows how three clusters are, and not reported where nothing is known', async (t) => {
  const { text, page, fine, picture } = await given(t, {});
  await text('h1', 'All well, traffic flows');
  await text('.map .link text', '238');
  const map = await page.$eval('svg.map', (svg) => [...svg.querySelectorAll('a.node')].map((node) => node.getAttribute('aria-label')));
  assert.equal(map.length, 3);
  assert.match(map.join('\n'), /paris, eu-west, active, in 212\/s serves 233\/s/);
  const rows = await page.$$eval('table.services tbody tr', (all) => all.map((row) => row.innerText.replace(/\s+/g, ' ')));
  const ledger = rows.find((row) => row.includes('shop/ledger'));
  assert.match(ledger, /not reported/);
  assert.doesNotMatch(ledger, /\b0\b/);
  assert.match(rows.find((row) => row.includes('shop/checkout')), /177\/s .* paris 90 % tokyo 10 %/);
  await text('.connection', 'Live');
  await picture('three-light');
  fine();
});

test('says first what is broken, and names a cause once', async (t) => {
  const { page, text, fine, picture } = await given(t, { dark: true }, '/', (server) => (server.state = trouble()));
  await text('h1', '1 thing is broken');
  const needs = await page.$$eval('.needs li', (all) => all.map((one) => one.innerText.replace(/\s+/g, ' ')));
  assert.match(needs[0], /tokyo is unreachable/);
  // Its tunnels and gateways are not named beside it.
  assert.equal(needs.filter((one) => one.includes('tokyo/gw')).length, 0);
  assert.ok(needs.some((one) => /1 gateway lags behind revision 13 paris\/gw-2 at revision 12/.test(one)), needs.join('\n'));
  await picture('trouble-dark');
  fine();
});

test('a secret in the address is sent, and gone from the address and the history', async (t) => {
  const { page, text, fine } = await given(t, {}, `/sign-in#${SECRET}`, (server) => (server.session = false));
  await text('h1', 'All well');
  assert.doesNotMatch(page.url(), new RegExp(SECRET));
  assert.equal(new URL(page.url()).pathname, '/');
  await page.reload();
  await text('h1', 'All well');
  fine();
});

test('a used link says what to do, and another one can be pasted', async (t) => {
  const { page, text, fine, picture } = await given(t, {}, '/sign-in#used', (server) => (server.session = false));
  await text('.refusal', 'meshctl dashboard makes another one.');
  await picture('sign-in');
  await page.type('#secret', `http://127.0.0.1:7480/sign-in#${SECRET}`);
  await page.keyboard.press('Enter');
  await text('h1', 'All well');
  fine();
});

test('names that mean harm are text', async (t) => {
  for (const make of [trouble, () => hundred(12)]) {
    const { page, text, fine, picture, server } = await given(t, { width: 360, height: 740 }, '/', (is) => (is.state = hostile(make())));
    await text('.panel', '<img src=x onerror=');
    for (const view of ['overview', 'services', 'clusters', 'gateways', 'events', 'slow', `services/${encodeURIComponent(server.state.services[1].name)}`, `clusters/${encodeURIComponent(server.state.clusters[1].name)}`]) {
      await page.evaluate((hash) => (location.hash = hash), `#/${view}`);
      await text('.panel', '<img src=x onerror=');
      const harm = await page.evaluate(() => ({
        harmed: window.harmed ?? null,
        elements: document.querySelectorAll('#page img, #page script, #page style, #page iframe, #page b, #page a:not([href^="#"])').length,
        // What would be invisible, or turn what is around it, is written out.
        invisible: /[\u202e\u200b\u001b\u0000]/.test(document.body.textContent),
        overflow: document.documentElement.scrollWidth - innerWidth,
      }));
      assert.deepEqual(harm, { harmed: null, elements: 0, invisible: false, overflow: 0 }, view);
    }
    assert.ok(HOSTILE.includes('<script>'));
    await picture(`hostile-${server.state.clusters.length}-phone`);
    fine();
  }
});

test('an update leaves focus, scroll and elements where they are', async (t) => {
  const { page, server, until, fine, text } = await given(t, { height: 500 }, '/#/services', (is) => (is.state = hundred(30)));
  await text('h1', 'Services');
  await page.evaluate(() => {
    scrollTo(0, 700);
    const link = document.querySelectorAll('table.services tbody a')[12];
    link.focus({ preventScroll: true });
    Object.assign(window, { link });
  });
  const was = await page.evaluate(() => scrollY);
  assert.ok(was > 0);
  // Others come and go before it, and figures change.
  for (let second = 0; second < 5; second += 1) {
    server.state.takenUnixMs += 1_000;
    server.state.services.shift();
    server.state.services[20].rate.requestsPerSecond = 1_000 + second;
    server.say();
    await until((wanted) => document.body.textContent.includes(wanted), `${(1 + second / 1000).toFixed(2).replace(/\.?0+$/, '')}k/s`);
  }
  assert.ok(await page.evaluate(() => document.activeElement === window.link && window.link.isConnected), 'the link that had the focus has it');
  // The browser keeps in place what is looked at.
  assert.ok((await page.evaluate(() => scrollY)) > 0);
  fine();
});

test('rows stay where they are while somebody points at them, and what is unwell comes up at once', async (t) => {
  const { page, server, until, text, fine } = await given(t, {});
  await text('h1', 'All well');
  const order = () => page.$$eval('#services-first tbody th', (all) => all.map((one) => one.querySelector('a').textContent));
  assert.deepEqual(await order(), ['shop/web', 'shop/checkout', 'shop/catalog', 'shop/ledger']);
  await page.hover('#services-first tbody tr');
  server.state.services.find((one) => one.name === 'shop/catalog').rate.requestsPerSecond = 5_000;
  server.say();
  await text('#services-first', '5k/s');
  assert.deepEqual(await order(), ['shop/web', 'shop/checkout', 'shop/catalog', 'shop/ledger']);
  server.state.services.find((one) => one.name === 'shop/ledger').state = 'down';
  server.say();
  await until(() => document.querySelector('#services-first tbody th a').textContent === 'shop/ledger');
  fine();
});

test('a hundred clusters: every pair in a few paths, what is away in a list, one found by its name', async (t) => {
  const { page, text, fine, picture, server, until } = await given(t, { height: 1000 }, '/', (is) => (is.state = hundred()));
  await text('h1', '1 thing is broken');
  assert.ok((await page.$$('.matrix path.cells')).length < 12);
  const squares = await page.$eval('.matrix path.cells.down', (path) => path.getAttribute('d').split('M').length - 1);
  assert.equal(squares, 2 * 99, 'the pairs of the cluster that is away, both ways');
  await picture('hundred-light');
  // A square, pointed at, says which pair it is and how it is.
  await page.hover('.matrix svg');
  await text('.readout', ' to ');
  await page.evaluate(() => [...document.querySelectorAll('.choose button')].find((button) => button.textContent === 'RTT').click());
  await text('.key', '≥150 ms');
  const drawn = await page.evaluate(async () => {
    const { change, app } = await import('/js/app.js');
    const began = performance.now();
    for (let times = 0; times < 10; times += 1) {
      for (const cluster of app.state.clusters) if (cluster.entering) cluster.entering.requestsPerSecond += 1;
      change(() => {});
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    }
    return { ms: (performance.now() - began) / 10, elements: document.querySelectorAll('*').length, kilobytes: JSON.stringify(app.state).length >> 10 };
  });
  t.diagnostic(`100 clusters: a state of ${drawn.kilobytes} KiB, ${drawn.elements} elements, ${drawn.ms.toFixed(0)} ms per state with two frames`);
  assert.ok(drawn.elements < 3_000, `${drawn.elements} elements`);
  await page.evaluate(() => (location.hash = '#/clusters'));
  await text('h1', 'Clusters');
  await page.type('#find-cluster', 'sa-east-03');
  await until(() => document.querySelectorAll('section[aria-labelledby="clusters-title"] tbody tr').length === 1);
  assert.equal(server.streams.size, 1);
  fine();
});

test('what is shown is called old when it is, and live again', async (t) => {
  const { page, server, text, until, fine, picture } = await given(t, {});
  await text('.connection', 'Live');
  server.quiet = true;
  server.refuseStreams = 2;
  server.cut();
  await text('.stale', 'This is how it was');
  assert.ok(await page.$('main.past'));
  await picture('stale');
  await text('.connection', 'Live');
  await until(() => !document.querySelector('.stale'));
  // Connected, and nothing comes: that is not live either.
  await text('.connection', 'Late');
  server.say();
  await text('.connection', 'Live');
  fine();
});

test('the end of a session is the end', async (t) => {
  const { page, server, text, fine } = await given(t, {});
  await text('.connection', 'Live');
  server.bye('revoked', 'Your identity was revoked.');
  await text('h1', 'Session ended');
  await text('.why', 'Your identity was revoked.');
  assert.equal(await page.$('.panel'), null, 'nothing of the federation is on the screen');
  assert.equal(server.streams.size, 0);
  fine();
});

test('who signs out is out', async (t) => {
  const { page, server, text, fine } = await given(t, {});
  await text('.connection', 'Live');
  await page.evaluate(() => [...document.querySelectorAll('button')].find((button) => button.textContent === 'Sign out').click());
  await text('h1', 'Session ended');
  assert.equal(server.session, false);
  fine();
});

test('events are found by kind, severity and word', async (t) => {
  const { page, text, until, fine } = await given(t, {}, '/#/events');
  await text('h1', 'Events');
  const shown = () => page.$$eval('.events li', (all) => all.map((one) => one.querySelector('strong').textContent));
  assert.equal((await shown()).length, three().events.length);
  await page.select('#event-severity', 'warning');
  await until(() => document.querySelectorAll('.events li').length === 2);
  await page.select('#event-kind', 'failover');
  await until(() => document.querySelectorAll('.events li').length === 1);
  assert.match((await shown())[0], /Failover/);
  await page.type('#find-event', 'nothing like that');
  await text('.empty', 'No event is like that.');
  fine();
});

test('by keyboard: past the bar, through the views, back to the beginning of each', async (t) => {
  const { page, text, fine } = await given(t, {});
  await text('h1', 'All well');
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to content');
  assert.ok(await page.evaluate(() => document.activeElement.getBoundingClientRect().left >= 0), 'it is seen when it has the focus');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  // The first thing in the view, and what it leads to.
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'All clusters');
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), 'none');
  await page.keyboard.press('Enter');
  await text('h1', 'Clusters');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  assert.match(await page.title(), /^Clusters/);
  fine();
});

test('light or dark as chosen, also after a reload', async (t) => {
  const { page, text, fine } = await given(t, { dark: false });
  await text('h1', 'All well');
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  const turn = () => page.evaluate(() => document.querySelector('button.icon').click());
  await turn();
  await turn();
  await page.waitForSelector('button.icon[aria-label="Colours: dark"]');
  const dark = await ground();
  assert.notEqual(dark, light);
  await page.reload();
  await text('h1', 'All well');
  assert.equal(await ground(), dark);
  fine();
});

test('a reader sees that nothing can be changed', async (t) => {
  const { page, text, fine } = await given(t, {}, '/#/services/shop%2Fcheckout', (server) => (server.role = 'reader'));
  await text('.actions', 'Your role may look, not change anything.');
  await page.click('#act-switch');
  assert.equal(await page.$('dialog'), null);
  assert.equal(await page.$eval('#act-switch', (button) => button.getAttribute('aria-disabled')), 'true');
  assert.equal(me('reader').role, 'reader');
  fine();
});
