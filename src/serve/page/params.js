// The parameters of a request, and the form that sets them. A parameter that is not set is not
// sent: the server's default applies, and the form shows it.

import { button, el } from "./dom.js";

const GROUPS = [
  ["Sampling", [
    { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, help: "0 always takes the likeliest token." },
    { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, help: "The likeliest tokens that together have this probability." },
    { name: "top_k", label: "Top k", min: 0, step: 1, help: "So many of the likeliest tokens; 0 takes all." },
    { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, help: "Tokens at least this likely, relative to the likeliest." },
  ]],
  ["Length", [
    { name: "max_tokens", label: "Max tokens", min: 1, step: 1, unset: "context", help: "The longest answer." },
    { name: "min_tokens", label: "Min tokens", min: 0, step: 1, unset: 0, help: "The answer does not end before." },
    { name: "stop", label: "Stop strings", kind: "lines", help: "One a line; \\n stands for a line break." },
    { name: "ignore_eos", label: "Ignore the end of turn", kind: "flag", help: "Writes on until the length is reached." },
  ]],
  ["Repetition", [
    { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, help: "For tokens that the answer has." },
    { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, help: "For each time that the answer has the token." },
    { name: "repetition_penalty", label: "Repetition penalty", min: 0.1, max: 2, step: 0.05, help: "Divides the score of tokens of prompt and answer; 1 is none." },
  ]],
  ["Seed", [
    { name: "seed", label: "Seed", step: 1, unset: "random", help: "Pinned: the same request gives the same answer, also under load." },
  ]],
  ["Output", [
    { name: "top_logprobs", label: "Alternatives of each token", min: 0, max: 20, step: 1, help: "Shown with probabilities in the token view." },
    { name: "n", label: "Answers", min: 1, max: 16, step: 1, help: "So many at once, as branches." },
    { name: "format", label: "Format", kind: "format", help: "The answer can only become text of this form." },
    { name: "logit_bias", label: "Logit bias", kind: "bias", help: "Token id and bias (-100 to 100), one a line: 235248 -5" },
  ]],
];

const FIELDS = GROUPS.flatMap(([, fields]) => fields);

const FORMATS = [
  ["text", "Any text"], ["json", "JSON"], ["schema", "JSON schema"], ["regex", "Regular expression"], ["choices", "Choices, one a line"], ["grammar", "Grammar (Lark)"],
];

// What the page sends itself where the user sets nothing: the token view needs the alternatives.
const OWN_DEFAULTS = { top_logprobs: 5, n: 1 };

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

const lines = (text) => text.split("\n").filter((line) => line !== "");
const unescape = (text) => text.replace(/\\([nt\\])/g, (_, char) => ({ n: "\n", t: "\t", "\\": "\\" })[char]);

// Returns the fields of a request. Throws an Error whose message names the field that is wrong.
export function requestFields(params, seed) {
  const { stop, format, logit_bias, top_logprobs = OWN_DEFAULTS.top_logprobs, ...plain } = params;
  const fields = { ...plain, seed: params.seed ?? seed, logprobs: true, top_logprobs };
  if (top_logprobs === 0) {
    delete fields.logprobs;
    delete fields.top_logprobs;
  }
  if (stop) fields.stop = lines(stop).map(unescape);
  if (logit_bias) {
    fields.logit_bias = Object.fromEntries(lines(logit_bias).map((line) => {
      const match = /^\s*(\d+)[\s:=,]+(-?[\d.]+)\s*$/.exec(line);
      if (!match) throw new Error(`Logit bias: "${line}" is not a token id and a number.`);
      return [match[1], Number(match[2])];
    }));
  }
  if (format && format.kind !== "text") Object.assign(fields, formatFields(format));
  return fields;
}

function formatFields({ kind, text = "" }) {
  if (kind === "json") return { response_format: { type: "json_object" } };
  if (kind === "regex") return { regex: text };
  if (kind === "choices") return { choices: lines(text) };
  if (kind === "grammar") return { grammar: text };
  try {
    return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } } };
  } catch (error) {
    throw new Error(`Format: the JSON schema cannot be read: ${error.message}`);
  }
}

// Returns the parameters that differ from the defaults, as a line: "temperature 0.2, seed 7".
export function summary(params) {
  const set = FIELDS.filter(({ name }) => params[name] !== undefined);
  if (set.length === 0) return "all at the server's defaults";
  return set.map(({ name, label }) => (typeof params[name] === "number" ? `${label.toLowerCase()} ${params[name]}` : label.toLowerCase())).join(", ");
}

// A form over `params`, which it changes in place; `changed` is called after each change.
export class ParamsForm {
  constructor(root, prefix, changed) {
    Object.assign(this, { root, prefix, changed, params: {}, defaults: {}, model: null });
  }

  show(params, model) {
    this.params = params;
    this.defaults = { ...model?.defaults, ...OWN_DEFAULTS };
    // Where none is set the page draws one itself, so that each answer can be had again.
    delete this.defaults.seed;
    this.context = model?.max_model_len;
    this.root.replaceChildren(...GROUPS.map(([title, fields]) =>
      el("fieldset", {}, el("legend", {}, title), fields.map((field) => this.row(field)))));
  }

  set(name, value) {
    if (value === undefined) delete this.params[name];
    else this.params[name] = value;
    this.changed();
  }

  row(field) {
    const id = `${this.prefix}-${field.name}`;
    const help = `${id}-help`;
    const make = { lines: () => this.text(field, id, help, 2), bias: () => this.text(field, id, help, 2), flag: () => this.flag(field, id, help), format: () => this.format(field, id, help) };
    const { inputs, extra, clear } = (make[field.kind] ?? (() => this.number(field, id, help)))();
    const row = el("div", { class: "param" });
    const mark = () => row.classList.toggle("set", this.params[field.name] !== undefined);
    const reset = button("close", `${field.label}: back to the default`, () => {
      clear();
      this.set(field.name, undefined);
      mark();
    }, { class: "reset" });
    row.append(el("div", { class: "head" }, el("label", { for: id }, field.label), reset, inputs), ...(extra ?? []), el("p", { id: help, class: "help" }, field.help));
    row.addEventListener("input", mark);
    mark();
    return row;
  }

  number(field, id, help) {
    const { name, min, step } = field;
    const max = field.max ?? (name.endsWith("_tokens") ? this.context : undefined);
    // The server's numbers have the digits of 32 bits.
    const standard = typeof this.defaults[name] === "number" ? Number(this.defaults[name].toPrecision(6)) : undefined;
    const input = el("input", { id, type: "number", inputmode: step < 1 ? "decimal" : "numeric", min, max, step: step < 1 ? "any" : step, placeholder: standard ?? field.unset ?? "default", "aria-describedby": help });
    const slider = field.max !== undefined && el("input", { type: "range", min, max, step, "aria-label": field.label, tabindex: "-1" });
    const display = () => {
      input.value = this.params[name] ?? "";
      if (slider) slider.value = this.params[name] ?? standard ?? max;
    };
    input.addEventListener("input", () => {
      if (!input.validity.valid) return;
      this.set(name, input.value === "" ? undefined : Number(input.value));
      if (slider) slider.value = input.value === "" ? standard ?? max : input.value;
    });
    if (slider) {
      slider.addEventListener("input", () => {
        this.set(name, Number(slider.value));
        input.value = slider.value;
      });
    }
    display();
    const clear = () => {
      input.value = "";
      if (slider) slider.value = standard ?? max;
    };
    return { inputs: input, extra: slider ? [slider] : [], clear };
  }

  text(field, id, help, rows) {
    const area = el("textarea", { id, rows, spellcheck: "false", "aria-describedby": help });
    area.value = this.params[field.name] ?? "";
    area.addEventListener("input", () => this.set(field.name, area.value || undefined));
    return { inputs: null, extra: [area], clear: () => (area.value = "") };
  }

  flag(field, id, help) {
    const box = el("input", { id, type: "checkbox", "aria-describedby": help });
    box.checked = this.params[field.name] ?? false;
    box.addEventListener("input", () => this.set(field.name, box.checked || undefined));
    return { inputs: box, clear: () => (box.checked = false) };
  }

  format(field, id, help) {
    const select = el("select", { id, "aria-describedby": help }, FORMATS.map(([value, label]) => el("option", { value }, label)));
    const area = el("textarea", { rows: "4", spellcheck: "false", "aria-label": "Format's text" });
    const change = () => {
      area.hidden = ["text", "json"].includes(select.value);
      this.set("format", select.value === "text" ? undefined : { kind: select.value, text: area.value });
    };
    select.value = this.params.format?.kind ?? "text";
    area.value = this.params.format?.text ?? "";
    area.hidden = ["text", "json"].includes(select.value);
    select.addEventListener("input", change);
    area.addEventListener("input", change);
    return { inputs: select, extra: [area], clear: () => ((select.value = "text"), (area.hidden = true)) };
  }
}
