// The server, the browser, and what a user does with the page.

import { spawn } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const PROGRAM = process.env.GEMMA_PJRT ?? new URL("../../target/release/gemma-pjrt", import.meta.url).pathname;
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export const SIZES = {
  phone: { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
  tablet: { width: 820, height: 1180 },
  desktop: { width: 1440, height: 900 },
};

export class Server {
  // Starts the server on a free port and waits until it is ready.
  static async start(options = []) {
    const child = spawn(PROGRAM, ["serve", "--port", "0", ...options], { stdio: ["ignore", "pipe", "inherit"] });
    const line = await new Promise((resolve, reject) => {
      createInterface(child.stdout).once("line", resolve);
      child.once("exit", (code) => reject(new Error(`${PROGRAM} serve ended with ${code} before it listened`)));
    });
    const server = new Server();
    server.child = child;
    server.url = new URL(/^listening on (\S+)$/.exec(line)[1]);
    for (;;) {
      const { ok } = await fetch(new URL("readyz", server.url));
      if (ok) return server;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  async stop() {
    if (this.child.exitCode !== null) return;
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGTERM");
    setTimeout(() => this.child.kill("SIGKILL"), 5000).unref();
    await ended;
  }
}

export class Browser {
  static async start() {
    const browser = new Browser();
    browser.puppeteer = await puppeteer.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
    browser.folders = [];
    return browser;
  }

  // Returns a page with nothing stored, of one of the sizes.
  async fresh(size = "desktop") {
    await this.context?.close();
    this.context = await this.puppeteer.createBrowserContext();
    const page = await this.context.newPage();
    await page.setViewport(SIZES[size]);
    await page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
    const downloads = await mkdtemp(join(tmpdir(), "page-"));
    this.folders.push(downloads);
    const session = await page.createCDPSession();
    await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: downloads, browserContextId: this.context.id });
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    // The browser logs answers that are no success, which tests ask for, and must log nothing else.
    page.on("console", (message) => message.type() === "error" && !/Failed to load resource/.test(message.text()) && errors.push(message.text()));
    return Object.assign(page, actions(page, this.context, errors), { downloads });
  }

  async close() {
    await this.puppeteer.close();
    for (const folder of this.folders) await rm(folder, { recursive: true });
  }
}

// What a user does. Bound to a page, whose own methods stay.
function actions(page, context, errors) {
  const idle = async () => {
    await page.waitForFunction(() => document.querySelector("#stop").hidden, { timeout: 60_000 });
    // The end of an answer is drawn with the next frame, and stored.
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 50))));
    if (errors.length > 0) throw new Error(`the page failed: ${errors.join("; ")}`);
  };
  const setText = (selector, text) => page.$eval(selector, (node, value) => {
    node.value = value;
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }, text);
  const send = async (text) => {
    await setText("#draft", text);
    await page.click("#send");
  };
  const requestsOf = async (act) => {
    const found = [];
    const listen = (request) => request.url().endsWith("/v1/chat/completions") && found.push(JSON.parse(request.postData()));
    page.on("request", listen);
    await act();
    page.off("request", listen);
    return found;
  };
  const files = () => readdir(page.downloads);
  return {
    idle, setText, send, requestsOf,
    async open(url, { ready = true } = {}) {
      await context.overridePermissions(new URL(url).origin, ["clipboard-read", "clipboard-write"]);
      await page.goto(url);
      if (ready) await page.waitForFunction(() => document.querySelector("#model").value !== "");
    },
    async say(text) {
      await send(text);
      await idle();
    },
    async requestOf(act) {
      const [request] = await requestsOf(act);
      return request;
    },
    setParam: (name, value) => setText(`#p-${name}`, String(value)),
    setSystem: (text) => setText("#system", text),
    check: (name) => page.$eval(`#p-${name}`, (node) => node.checked || node.click()),
    async replaceText(selector, text) {
      await page.waitForSelector(selector);
      await page.focus(selector);
      await setText(selector, "");
      await page.type(selector, text);
    },
    async clickText(selector, text) {
      await page.waitForSelector(selector);
      const all = await page.$$(selector);
      for (const node of all) {
        if ((await node.evaluate((each) => each.textContent)).startsWith(text)) return node.click();
      }
      throw new Error(`no ${selector} begins with "${text}"`);
    },
    async menu(button, item) {
      await page.click(button);
      await page.waitForSelector(".menu");
      if (item) await this.clickText(".menu button", item);
    },
    async chord(...keys) {
      for (const key of keys) await page.keyboard.down(key);
      for (const key of keys.toReversed()) await page.keyboard.up(key);
    },
    theme: (name) => page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: name }, { name: "prefers-reduced-motion", value: "reduce" }]),
    // Waits for the end of a side's movement.
    settle: () => page.evaluate(async () => {
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      await Promise.all(document.getAnimations().map((each) => each.finished.catch(() => {})));
    }),
    // Returns what the act downloads.
    async download(act) {
      const before = new Set(await files());
      await act();
      for (let tries = 0; tries < 100; tries += 1) {
        const name = (await files()).find((each) => !before.has(each) && !each.endsWith(".crdownload"));
        if (name) return readFile(join(page.downloads, name), "utf8");
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      throw new Error("nothing was downloaded within 5 s");
    },
    async upload(path) {
      const chooser = page.waitForFileChooser();
      await this.menu("#files", "Import");
      await (await chooser).accept([path]);
    },
    // Returns the answers in the browser's database, oldest first.
    storedAnswers: () => page.evaluate(() => new Promise((resolve) => {
      indexedDB.open("gemma-pjrt").onsuccess = ({ target }) => {
        target.result.transaction("messages").objectStore("messages").getAll().onsuccess = ({ target: { result } }) =>
          resolve(result.filter(({ role }) => role === "assistant").sort((a, b) => a.created - b.created));
      };
    })),
  };
}

// Returns axe's violations of the WCAG and of its best practices, one line each.
export async function axe(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html.slice(0, 120)} ${any[0]?.message ?? ""}`).join(" | ")}`);
}
