// A headless Chromium, and what tests ask of a page.

import { mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Where `check` installed what is needed, and where pictures go. */
export const TOOLS = process.env.PAGE_TOOLS ?? fileURLToPath(new URL('../../../../target/page-tools', import.meta.url));
export const PICTURES = join(TOOLS, 'screenshots');
const require = createRequire(join(TOOLS, 'package.json'));

// A condition gets so long. Only what fails waits it out; a starved machine takes its time.
export const PATIENCE_MS = 60_000;

export async function launch() {
  const { default: puppeteer } = await import(require.resolve('puppeteer-core'));
  mkdirSync(PICTURES, { recursive: true });
  return puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    protocolTimeout: 180_000,
    // Root, as in a container, has no sandbox. /dev/shm is small there.
    args: [...(process.getuid?.() === 0 ? ['--no-sandbox'] : []), '--disable-dev-shm-usage', '--disable-gpu', '--hide-scrollbars', '--force-color-profile=srgb', '--font-render-hinting=none'],
  });
}

/**
 * A page that fails the test on any error, refused resource, and breach of its policy.
 * @param {any} browser
 * @param {{ width?: number, height?: number, dark?: boolean, clock?: number }} [how]
 */
export async function open(browser, url, how = {}) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(`error: ${error.stack ?? error}`));
  page.on('console', (message) => {
    // What the browser says itself of answers that are not 200 is what tests provoke.
    if (message.type() === 'error' && !/Failed to load resource|net::ERR/.test(message.text())) complaints.push(`console: ${message.text()}`);
  });
  page.setDefaultTimeout(PATIENCE_MS);
  const size = { width: how.width ?? 1280, height: how.height ?? 900 };
  await page.setViewport({ ...size, deviceScaleFactor: size.width < 500 ? 2 : 1, isMobile: size.width < 500, hasTouch: size.width < 500 });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: how.dark ? 'dark' : 'light' }, { name: 'prefers-reduced-motion', value: 'reduce' }]);
  await page.goto(url, { waitUntil: 'load' });
  return {
    page,
    complaints,
    close: () => context.close(),
    /** Waits until something holds in the page. */
    until: (what, ...args) => page.waitForFunction(what, { polling: 50, timeout: PATIENCE_MS }, ...args),
    /** Waits for a text anywhere in an element. */
    text: (selector, wanted) =>
      page.waitForFunction((where, what) => [...document.querySelectorAll(where)].some((element) => element.textContent.includes(what)), { polling: 50, timeout: PATIENCE_MS }, selector, wanted),
    /** The whole page: as high as it is, since taking what is beyond the window changes widths meanwhile. */
    async picture(name) {
      const height = await page.evaluate(() => document.documentElement.scrollHeight);
      await page.setViewport({ ...page.viewport(), height: Math.max(size.height, Math.min(height, 8_000)) });
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
      await page.screenshot({ path: join(PICTURES, `${name}.png`) });
      await page.setViewport({ ...page.viewport(), height: size.height });
    },
  };
}

/** What axe-core finds. */
export async function violations(page) {
  const axe = require.resolve('axe-core/axe.min.js');
  // Through the debugger, not through the page, whose policy allows no script of others.
  const { readFileSync } = await import('node:fs');
  await page.evaluate(readFileSync(axe, 'utf8'));
  const result = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
  return result.violations.map((one) => `${one.id} (${one.impact}): ${one.help}\n${one.nodes.slice(0, 4).map((node) => `    ${node.target.join(' ')}  ${node.any.concat(node.all, node.none).map((why) => why.message).join('; ')}`).join('\n')}`);
}
