// Drives the page in headless Chromium against the real server with the demo model.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { after, before, beforeEach, test } from "node:test";
import { axe, Browser, Server } from "./harness.mjs";

const FRANCE = "What is the capital of France?";

let server;
let browser;
let page;

before(async () => {
  server = await Server.start();
  browser = await Browser.start();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});
beforeEach(async () => {
  page = await browser.fresh();
  await page.open(server.url);
});

const texts = (selector) => page.$$eval(selector, (nodes) => nodes.map((node) => node.textContent));
const answers = () => texts(".message.assistant .body");
const title = (label) => `.message:last-child button[title^="${label}"]`;

// Waits for what happens within the page's own time: a save, a redraw.
async function eventually(what, check) {
  for (let tries = 0; ; tries += 1) {
    const value = await check();
    if (value) return value;
    assert.ok(tries < 100, `${what} did not happen within 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

test("an answer streams, with its figures, and is there after a reload", async () => {
  await page.setParam("temperature", 0);
  await page.say(FRANCE);
  assert.match((await answers())[0], /Paris/);
  const figures = await texts(".figures dt");
  for (const name of ["TTFT", "answer", "cached", "context", "seed"]) assert.ok(figures.includes(name), `${name} is missing in ${figures}`);
  await page.reload();
  await page.waitForSelector(".message.assistant");
  assert.match((await answers())[0], /Paris/);
  assert.deepEqual(await texts("#list a"), [FRANCE]);
});

test("stop ends an answer, and continue writes on in the same one", async () => {
  await page.setParam("max_tokens", 400);
  await page.check("ignore_eos");
  await page.send("Count from 1 to 90.");
  await page.waitForFunction(() => document.querySelector(".message.assistant .body")?.textContent.length > 8);
  await page.keyboard.press("Escape");
  await page.idle();
  assert.deepEqual(await texts(".ending"), ["Stopped by you."]);
  const [before] = await page.storedAnswers();
  await page.setParam("max_tokens", 8);
  await page.click(title("Continue"));
  await page.idle();
  const stored = await page.storedAnswers();
  assert.equal(stored.length, 1);
  assert.ok(stored[0].content.startsWith(before.content), `${stored[0].content} does not go on from ${before.content}`);
  // Tokens, as text need not grow: control tokens have none.
  assert.equal(stored[0].tokens.length, before.tokens.length + 8);
  assert.deepEqual(await texts(".ending"), ["Ended at the length limit."]);
});

test("another answer is a branch, and the branches can be walked", async () => {
  await page.setParam("temperature", 2);
  await page.setParam("top_p", 1);
  await page.say(FRANCE);
  await page.click(title("Another answer"));
  await page.idle();
  assert.deepEqual(await texts(".message.assistant .siblings > span"), ["2/2"]);
  await page.click(title("Previous branch"));
  assert.deepEqual(await texts(".message.assistant .siblings > span"), ["1/2"]);
  assert.equal((await page.storedAnswers()).length, 2);
});

test("editing a message asks again beside it; editing an answer keeps the old one", async () => {
  await page.setParam("temperature", 0);
  await page.say(FRANCE);
  await page.click('.message.user button[title^="Edit"]');
  await page.replaceText(".editing textarea", "What is the capital of Italy?");
  await page.clickText(".editing button", "Send");
  await page.idle();
  assert.deepEqual(await texts(".bubble"), ["What is the capital of Italy?"]);
  assert.match((await answers())[0], /Rome/);
  await page.click(title("Edit this answer"));
  await page.replaceText(".editing textarea", "It is *Roma*.");
  await page.clickText(".editing button", "Save");
  assert.equal(await page.$eval(".markdown em", (node) => node.textContent), "Roma");
  assert.deepEqual(await texts(".siblings > span"), ["2/2", "2/2"]);
});

test("the same answer again is the same, token by token", async () => {
  await page.setParam("temperature", 1.5);
  await page.say(FRANCE);
  await page.click(title("Same answer again"));
  await page.idle();
  const [verdict] = await texts(".ending.same, .ending.differs");
  assert.match(verdict, /^The same answer again: all \d+ tokens are equal\.$/);
  const [first, second] = await page.storedAnswers();
  assert.equal(first.request.seed, second.request.seed);
  assert.deepEqual(first.tokens.map(({ token }) => token), second.tokens.map(({ token }) => token));
});

test("a seed is pinned from an answer and used again", async () => {
  await page.say(FRANCE);
  const seed = await page.$eval(".figures button", (node) => node.textContent);
  await page.click(".figures button");
  await page.say("What is the capital of Italy?");
  assert.deepEqual(await texts(".figures button"), [seed, seed]);
});

test("the token view shows probabilities and alternatives, by pointer and by keyboard, and branches", async () => {
  await page.say(FRANCE);
  await page.click("#tokens");
  const tokens = await page.$$eval(".token", (nodes) => nodes.map((node) => node.getAttribute("aria-label")));
  assert.ok(tokens.length >= 2 && tokens.every((label) => /, (< )?[\d.]+ %$/.test(label)), tokens.join("; "));
  await page.hover(".token");
  assert.equal(await page.$$eval("#alternatives li", (nodes) => nodes.length), 5);
  const shares = await page.$$eval("#alternatives .share", (nodes) => nodes.map((node) => parseFloat(node.textContent.replace("< ", ""))));
  assert.deepEqual(shares, shares.toSorted((a, b) => b - a));
  await page.keyboard.press("Escape");
  await page.focus('.token[tabindex="0"]');
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.matches("#alternatives button")), true);
  const chosen = await page.evaluate(() => document.activeElement.querySelector("code").textContent);
  await page.keyboard.press("Enter");
  await page.waitForSelector(".siblings");
  await page.idle();
  assert.deepEqual(await texts(".siblings > span"), ["2/2"]);
  const stored = (await page.storedAnswers()).at(-1);
  const ended = chosen.startsWith("<");
  if (!ended) {
    assert.equal(stored.tokens[1].chosen, true);
    assert.ok(stored.content.startsWith(stored.tokens[0].token + stored.tokens[1].token));
  }
});

test("the pointer on rendered text finds its token", async () => {
  await page.say(FRANCE);
  const box = await page.$eval(".markdown p", (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    const { left, top, height } = range.getClientRects()[0];
    return { x: left + 4, y: top + height / 2 };
  });
  await page.mouse.move(box.x, box.y);
  await page.waitForSelector("#alternatives");
  const [first] = (await page.storedAnswers())[0].tokens;
  const named = await page.$eval("#alternatives header code", (node) => node.textContent);
  assert.equal(named.replaceAll("\u00b7", " ").trim(), first.token.trim());
});

test("the prompt is shown as the template wrote it, with the ids that were used", async () => {
  await page.setSystem("Answer briefly.");
  await page.say(FRANCE);
  await page.click(title("The prompt"));
  await page.waitForSelector(".promptview pre");
  const prompt = await page.$eval(".promptview pre", (node) => node.textContent);
  assert.match(prompt, /^<bos><start_of_turn>user\nAnswer briefly\.\s+What is the capital of France\?<end_of_turn>\n<start_of_turn>model\n$/);
  assert.match((await texts(".promptview .ending"))[0], /exactly these ids/);
  const shown = (await texts(".ids span")).map(Number);
  assert.deepEqual(shown, (await page.storedAnswers())[0].promptIds);
});

test("several answers at once are branches", async () => {
  await page.setParam("n", 3);
  await page.say(FRANCE);
  assert.deepEqual(await texts(".message.assistant .siblings > span"), ["1/3"]);
  const stored = await page.storedAnswers();
  assert.ok(stored.every(({ content, finish }) => content.length > 0 && finish === "stop"));
});

test("the parameters show the server's defaults and are sent only where they are set", async () => {
  const { data } = await (await fetch(new URL("v1/models", server.url))).json();
  await page.click("#show-panel");
  for (const [name, value] of Object.entries(data[0].defaults)) {
    const placeholder = await page.$eval(`#p-${name}`, (node) => node.placeholder).catch(() => null);
    if (name === "seed") assert.equal(placeholder, "random");
    else if (placeholder !== null && value !== null) assert.equal(placeholder, String(Number(value.toPrecision(6))), name);
  }
  const sent = await page.requestOf(() => page.say(FRANCE));
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "stop"]) assert.ok(!(name in sent), `${name} was sent`);
  await page.setParam("temperature", 0.3);
  await page.setParam("top_k", 5);
  await page.setText("#p-stop", "\\n\nend");
  await page.setText("#p-logit_bias", "235 -5");
  const second = await page.requestOf(() => page.say(FRANCE));
  assert.deepEqual([second.temperature, second.top_k, second.stop, second.logit_bias], [0.3, 5, ["\n", "end"], { 235: -5 }]);
  await page.click("#reset");
  const third = await page.requestOf(() => page.say(FRANCE));
  assert.ok(!("temperature" in third) && !("stop" in third));
});

test("the form of an answer can be set", async () => {
  const sent = async (kind, text) => {
    await page.$eval("#p-format", (node, value) => {
      node.value = value;
      node.dispatchEvent(new Event("input", { bubbles: true }));
    }, kind);
    if (text) await page.setText('[aria-label="Format\'s text"]', text);
    return page.requestOf(() => page.say(FRANCE));
  };
  assert.deepEqual((await sent("json")).response_format, { type: "json_object" });
  assert.equal((await sent("regex", "[a-z]+")).regex, "[a-z]+");
  assert.deepEqual((await sent("choices", "yes\nno")).choices, ["yes", "no"]);
  assert.deepEqual((await sent("schema", '{"type": "object"}')).response_format.json_schema.schema, { type: "object" });
  const none = await sent("text");
  assert.ok(!("response_format" in none) && !("regex" in none) && !("choices" in none));
});

test("a server that loads says how far it is, and is used when it is ready", async () => {
  let loading = true;
  await page.setRequestInterception(true);
  page.on("request", (request) => {
    const body = JSON.stringify({ status: "loading", weights_placed: true, programs: { done: 3, total: 12 } });
    if (loading && request.url().endsWith("/readyz")) request.respond({ status: 503, contentType: "application/json", body });
    else request.continue();
  });
  await page.open(server.url, { ready: false });
  await page.waitForSelector("#banner progress");
  assert.match((await texts("#banner"))[0], /3 of 12 programs are compiled/);
  assert.equal(await page.$eval("#model", (node) => node.value), "");
  loading = false;
  await page.waitForFunction(() => document.querySelector("#banner").hidden && document.querySelector("#model").value !== "");
});

test("a wrong parameter is explained in the answer's place, and can be tried again", async () => {
  await page.setText("#p-logit_bias", "apple");
  await page.say(FRANCE);
  assert.match((await texts(".error p"))[0], /Logit bias: "apple"/);
  await page.setText("#p-logit_bias", "pear");
  await page.clickText(".error button", "Try again");
  await page.idle();
  assert.match((await texts(".error p"))[0], /Logit bias: "pear"/);
  await page.setText("#p-logit_bias", "");
  await page.say("What is the capital of Italy?");
  // The turn that has no answer is not part of the next one's prompt.
  assert.deepEqual(await texts(".bubble"), ["What is the capital of Italy?"]);
  assert.deepEqual(await texts(".error p"), []);
});

test("conversations are searched, renamed, branched, deleted and brought back", async () => {
  await page.setParam("temperature", 0);
  await page.say(FRANCE);
  await page.click("#new");
  await page.say("What is the capital of Italy?");
  assert.equal((await texts("#list a")).length, 2);
  // The word is in an answer only.
  await page.type("#search", "rome");
  await eventually("the search", async () => (await texts("#list a")).length === 1);
  assert.deepEqual(await texts("#list a"), ["What is the capital of Italy?"]);
  await page.replaceText("#search", "");
  await eventually("the end of the search", async () => (await texts("#list a")).length === 2);
  await page.menu("#more", "Rename");
  await page.replaceText("#rename-field", "On Italy");
  await page.keyboard.press("Enter");
  await eventually("the new title", async () => (await texts("#list a"))[0] === "On Italy");
  await page.menu("#more", "Branch");
  await eventually("the branch", async () => (await texts("#title"))[0] === "On Italy (branch)");
  assert.match((await answers())[0], /Rome/);
  await page.menu("#more", "Delete");
  await eventually("the deletion", async () => (await texts("#list a")).length === 2);
  await page.clickText(".toast button", "Undo");
  await eventually("the undoing", async () => (await texts("#list a")).length === 3);
  assert.match((await answers())[0], /Rome/);
});

test("an export is imported as the same conversation", async () => {
  await page.say(FRANCE);
  await page.click(title("Another answer"));
  await page.idle();
  const json = await page.download(() => page.menu("#files", "Export all"));
  const markdown = await page.download(() => page.menu("#more", "Export as markdown"));
  assert.match(markdown, /^# What is the capital of France\?\n\n## You\n\nWhat is the capital of France\?\n\n## /);
  await page.menu("#more", "Delete");
  await eventually("the deletion", async () => (await texts("#list a")).length === 0);
  await writeFile(`${page.downloads}/in.json`, json);
  await page.upload(`${page.downloads}/in.json`);
  await eventually("the import", async () => (await texts("#list a")).length === 1);
  await page.click("#list a");
  await page.waitForSelector(".siblings");
  assert.deepEqual(await texts(".siblings > span"), ["2/2"]);
  await writeFile(`${page.downloads}/bad.json`, '{"format": "another"}');
  await page.upload(`${page.downloads}/bad.json`);
  await eventually("the refusal", async () => (await texts(".toast"))[0]?.includes('"another"'));
});

test("what a model writes is shown, not run", async () => {
  await page.say(FRANCE);
  await page.click(title("Edit this answer"));
  const text = [
    "# Title", "<img src=x onerror=alert(1)><script>alert(2)</script>", "[bad](javascript:alert(3)) [good](https://example.org/a_b) ![i](https://example.org/i.png)",
    "- one", "  - **two** and `code`", "- [x] done", "", "| a | b |", "|---|--:|", "| 1 | 2 |", "", "> quote", "", "```rust", "let x = 1; // <b>", "```",
  ].join("\n");
  await page.setText(".editing textarea", text);
  await page.clickText(".editing button", "Save");
  const seen = await page.$eval(".markdown", (node) => ({
    tags: [...node.querySelectorAll("*")].map((each) => each.localName),
    links: [...node.querySelectorAll("a")].map((each) => each.getAttribute("href")),
    text: node.textContent,
  }));
  for (const tag of ["h3", "ul", "strong", "code", "table", "blockquote", "figure", "input"]) assert.ok(seen.tags.includes(tag), `${tag} is missing`);
  for (const tag of ["img", "script", "b"]) assert.ok(!seen.tags.includes(tag), `${tag} was made`);
  assert.deepEqual(seen.links, ["https://example.org/a_b", "https://example.org/i.png"]);
  assert.ok(seen.text.includes("<script>alert(2)</script>"));
  await page.click("figure.code button");
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "let x = 1; // <b>");
});

test("the keyboard reaches everything", async () => {
  await page.focus("#draft");
  await page.keyboard.type("one");
  await page.chord("Shift", "Enter");
  await page.keyboard.type("two");
  assert.equal(await page.$eval("#draft", (node) => node.value), "one\ntwo");
  await page.replaceText("#draft", FRANCE);
  await page.keyboard.press("Enter");
  await page.waitForSelector(".message.assistant");
  await page.idle();
  await page.keyboard.press("ArrowUp");
  await page.waitForFunction(() => document.activeElement.matches(".message.user.editing textarea"));
  await page.keyboard.press("Escape");
  assert.equal(await page.$(".editing"), null);
  await page.chord("Control", "k");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.chord("Control", "b");
  assert.equal(await page.$eval("body", (node) => node.classList.contains("no-sidebar")), true);
  await page.chord("Control", ",");
  assert.equal(await page.$eval("body", (node) => node.classList.contains("panel")), true);
  await page.chord("Control", ".");
  assert.ok(await page.$(".token"));
  await page.chord("Control", "Shift", "O");
  assert.ok(await page.$(".welcome"));
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("?");
  assert.ok(await page.$("dialog[open]"));
});

test("the theme follows the system until one is chosen, which is kept", async () => {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.theme("light");
  const light = await ground();
  await page.theme("dark");
  const dark = await ground();
  assert.notEqual(light, dark);
  await page.click("#theme");
  assert.equal(await ground(), light);
  await page.reload();
  assert.equal(await ground(), light);
});

test("slots, queue and cache are live", async () => {
  await eventually("the metrics", async () => (await texts("#live div > span:first-child")).includes("Queue"));
  const names = await texts("#live div > span:first-child");
  for (const name of ["Slots", "Queue", "KV cache"]) assert.ok(names.includes(name), `${name} is missing in ${names}`);
  assert.match((await texts("#live .slots b"))[0], /^\d+\/\d+$/);
});

test("two parameter sets are compared on one prompt", async () => {
  await page.open(new URL("compare", server.url));
  await page.type("#question", FRANCE);
  const requests = await page.requestsOf(async () => {
    await page.click("#go");
    await page.idle();
  });
  assert.deepEqual(requests.map(({ temperature }) => temperature).sort(), [0, 1]);
  assert.equal(requests[0].seed, requests[1].seed);
  assert.equal((await texts(".side .body")).length, 2);
  assert.match((await texts("#verdict"))[0], /^The answers /);
  await page.click("#level");
  await page.click("#go");
  await page.idle();
  assert.match((await texts("#verdict"))[0], /^The answers are the same/);
  await page.click("#tokens");
  assert.ok(await page.$(".side .token"));
});

test("a server with a key asks for it once", async () => {
  const locked = await Server.start(["--api-key", "secret"]);
  try {
    await page.open(locked.url, { ready: false });
    await page.waitForSelector("#key-field");
    await page.type("#key-field", "secret");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#model").value !== "");
    await page.setParam("temperature", 0);
    await page.say(FRANCE);
    assert.match((await answers())[0], /Paris/);
    await eventually("the metrics", async () => (await texts("#live b")).length > 0);
  } finally {
    await locked.stop();
  }
});

test("a server that is gone is said so, in the answer's place and above", async () => {
  const brief = await Server.start();
  await page.open(brief.url);
  await brief.stop();
  await page.send(FRANCE);
  await page.waitForSelector(".error");
  assert.match((await texts(".error p"))[0], /cannot be reached/);
  await page.waitForFunction(() => !document.querySelector("#offline").hidden);
});

test("axe finds no violation, on all views, in both themes, at three sizes", async () => {
  const found = [];
  const look = async (view) => found.push(...(await axe(page)).map((violation) => `${view}: ${violation}`));
  for (const size of ["phone", "tablet", "desktop"]) {
    for (const theme of ["light", "dark"]) {
      page = await browser.fresh(size);
      await page.theme(theme);
      await page.open(server.url);
      const view = (name) => look(`${name}, ${theme}, ${size}`);
      await view("welcome");
      await page.say(FRANCE);
      await page.click(title("Another answer"));
      await page.idle();
      await view("answer");
      await page.click("#tokens");
      await page.focus('.token[tabindex="0"]');
      await page.waitForSelector("#alternatives");
      await view("tokens");
      await page.keyboard.press("Escape");
      await page.click("#prompt");
      await page.waitForSelector(".promptview pre");
      await view("prompt");
      await page.keyboard.press("Escape");
      await page.click("#show-panel");
      await page.settle();
      await view("parameters");
      await page.click("#hide-panel");
      await page.settle();
      await page.menu("#more");
      await view("menu");
      await page.keyboard.press("Escape");
      if (size !== "desktop") await page.click("#show-sidebar");
      await page.settle();
      await view("conversations");
      await page.click("#help");
      await view("shortcuts");
      await page.keyboard.press("Escape");
      await page.click("#key");
      await view("key");
      await page.open(new URL("compare", server.url));
      await page.type("#question", FRANCE);
      await page.click("#go");
      await page.idle();
      await page.click(".side summary");
      await view("compare");
    }
  }
  assert.deepEqual(found, []);
});

test("nothing is wider than the window", async () => {
  for (const size of ["phone", "tablet", "desktop"]) {
    page = await browser.fresh(size);
    for (const path of ["", "compare"]) {
      await page.open(new URL(path, server.url));
      const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(over <= 0, `/${path} on a ${size} is ${over} px too wide`);
    }
  }
});

test("a first load is below 150 kB", async (context) => {
  const paints = [];
  let bytes = 0;
  for (let load = 0; load < 5; load += 1) {
    page = await browser.fresh();
    const session = await page.createCDPSession();
    await session.send("Network.enable");
    bytes = 0;
    session.on("Network.loadingFinished", ({ encodedDataLength }) => (bytes += encodedDataLength));
    await page.open(server.url);
    paints.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime));
  }
  // Told, not asserted: a machine may be busy.
  paints.sort((a, b) => a - b);
  context.diagnostic(`first load: ${(bytes / 1000).toFixed(1)} kB with headers and the first API calls; first contentful paint: ${paints.map((ms) => Math.round(ms)).join(", ")} ms`);
  assert.ok(bytes < 150_000, `${bytes} bytes`);
});

test("the files are served strictly", async () => {
  for (const path of ["", "compare", "page/app.js", "page/style.css", "page/icon.svg"]) {
    const response = await fetch(new URL(path, server.url));
    assert.equal(response.status, 200, path);
    assert.match(response.headers.get("content-security-policy"), /^default-src 'none'; script-src 'self'/);
    assert.equal(response.headers.get("x-content-type-options"), "nosniff");
    assert.equal(response.headers.get("cache-control"), "no-cache");
    const again = await fetch(new URL(path, server.url), { headers: { "If-None-Match": response.headers.get("etag") } });
    assert.equal(again.status, 304, path);
  }
});

test("the list of preloaded modules is complete", async () => {
  for (const [html, entry] of [["index.html", "app.js"], ["compare.html", "compare.js"]]) {
    const source = new URL("../../src/serve/page/", import.meta.url);
    const wanted = new Set();
    const follow = async (name) => {
      const text = await readFile(new URL(name, source), "utf8");
      for (const [, other] of text.matchAll(/from "\.\/([\w.]+)"/g)) {
        if (!wanted.has(other)) {
          wanted.add(other);
          await follow(other);
        }
      }
    };
    await follow(entry);
    const page = await readFile(new URL(html, source), "utf8");
    const listed = [...page.matchAll(/modulepreload" href="page\/([\w.]+)"/g)].map(([, name]) => name);
    assert.deepEqual(listed.toSorted(), [...wanted].sort(), html);
  }
});
