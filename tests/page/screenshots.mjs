// Makes the pictures of docs/page.md: node screenshots.mjs

import { fileURLToPath } from "node:url";
import { Browser, Server } from "./harness.mjs";

const DOCS = fileURLToPath(new URL("../../docs/page/", import.meta.url));

const server = await Server.start();
const browser = await Browser.start();

async function view(name, size, theme, show) {
  const page = await browser.fresh(size);
  await page.theme(theme);
  await page.open(server.url);
  await show(page);
  await page.settle();
  await page.screenshot({ path: `${DOCS}${name}.png` });
}

const CONVERSATION = ["What is the capital of France?", "What is 12 plus 30?", "Sort these numbers: 7, 2, 9, 4."];

await view("conversation", "desktop", "light", async (page) => {
  for (const text of ["What is the capital of Italy?", "Spell the word apple."]) {
    await page.say(text);
    await page.click("#new");
  }
  for (const text of CONVERSATION) await page.say(text);
  await page.click('.message:last-child button[title^="Same answer again"]');
  await page.idle();
  await page.click("#show-panel");
});
await view("tokens", "desktop", "dark", async (page) => {
  await page.setParam("temperature", 2);
  await page.setParam("seed", 8);
  for (const text of CONVERSATION.slice(0, 2)) await page.say(text);
  await page.click("#tokens");
  await page.hover(".token.level4");
  await page.waitForSelector("#alternatives");
});
await view("prompt", "tablet", "light", async (page) => {
  await page.setSystem("Answer briefly.");
  await page.say(CONVERSATION[0]);
  await page.click('.message:last-child button[title^="The prompt"]');
  await page.waitForSelector(".promptview pre");
});
await view("compare", "desktop", "light", async (page) => {
  await page.open(new URL("compare", server.url));
  await page.setText("#b-temperature", "2");
  await page.type("#question", "Name three capitals of Europe.");
  await page.click("#go");
  await page.idle();
  await page.click("#tokens");
});
await view("phone", "phone", "dark", async (page) => {
  for (const text of CONVERSATION.slice(0, 2)) await page.say(text);
});

await browser.close();
await server.stop();
