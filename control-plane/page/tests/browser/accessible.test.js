// axe-core finds nothing, in no view, light or dark, at a desk or on a phone; and no view is wider than the phone.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, open, violations } from './browser.js';
import { hundred, three, trouble } from './fixtures.js';
import { serve } from './server.js';

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

const VIEWS = ['overview', 'services', 'services/shop%2Fcheckout', 'clusters', 'clusters/paris', 'gateways', 'events', 'slow'];
const LOOKS = [
  { name: 'light', dark: false, width: 1280 },
  { name: 'dark', dark: true, width: 1280 },
  { name: 'phone-light', dark: false, width: 360, height: 740 },
  { name: 'phone-dark', dark: true, width: 360, height: 740 },
];

for (const look of LOOKS) {
  test(`every view, ${look.name}`, async (t) => {
    const server = await serve();
    const { page, text, picture, complaints, close } = await open(browser, server.url, look);
    t.after(async () => {
      await close();
      server.close();
    });
    const found = [];
    const examine = async (name, state, hash) => {
      server.say(state);
      await page.evaluate((where) => (location.hash = where), `#/${hash}`);
      await page.waitForFunction((where) => location.hash === `#/${where}` && document.querySelector('nav a[aria-current]')?.getAttribute('href') === `#/${where.split('/')[0]}`, {}, hash);
      await page.waitForFunction((count) => document.querySelector('h1') && document.querySelectorAll('.panel').length > 0 && (count === 0 || document.body.textContent.includes('eu-north')), {}, state.clusters.length > 6 ? 1 : 0);
      found.push(...(await violations(page)).map((one) => `${name} ${hash}: ${one}`));
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (overflow > 0) found.push(`${name} ${hash}: ${overflow} px wider than the screen`);
      await picture(`${name}-${hash.replace(/\W+/g, '-')}-${look.name}`);
    };
    await text('h1', 'All well');
    // Colours and sizes were looked at in all views before: what both together could change is in few.
    const views = look.dark && look.width < 500 ? ['overview', 'services/shop%2Fcheckout'] : VIEWS;
    for (const view of views) await examine('three', three(), view);
    for (const view of ['overview', 'services/shop%2Fcheckout', 'gateways']) await examine('trouble', trouble(), view);
    // Once is enough of megabytes.
    server.quiet = true;
    for (const view of ['overview', 'clusters']) await examine('hundred', hundred(), view);
    server.quiet = false;
    // A dialog, with its form and its plan.
    server.say(three());
    await page.evaluate(() => (location.hash = '#/services/shop%2Fcheckout'));
    await page.waitForSelector('#act-switch');
    await page.click('#act-switch');
    await page.waitForSelector('dialog[open]');
    found.push(...(await violations(page)).map((one) => `form: ${one}`));
    await page.click('#choice-6');
    await page.click('dialog .primary');
    await page.waitForSelector('.diff');
    found.push(...(await violations(page)).map((one) => `plan: ${one}`));
    await picture(`switch-plan-${look.name}`);
    // And who is not signed in.
    server.bye('expired', 'The session has ended.');
    await text('h1', 'Session ended');
    found.push(...(await violations(page)).map((one) => `sign-in: ${one}`));
    assert.deepEqual(found, []);
    assert.deepEqual(complaints, []);
  });
}
