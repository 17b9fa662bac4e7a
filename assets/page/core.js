// What every part of the page uses: elements, numbers as text, colours, files to save. Text from results only ever goes
// into the page as text, never as markup.
"use strict";
window.bupo = {};

(() => {
  /** An element with attributes and children; a string child is text. */
  bupo.el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "class") node.className = value;
      else if (key in node && key !== "list") node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
    return node;
  };

  /** A number in `digits` significant digits, as a person writes it; a dash for none. */
  bupo.show = (x, digits = 4) => {
    if (x === null || x === undefined || Number.isNaN(x)) return "–";
    if (typeof x !== "number") return String(x);
    if (Number.isInteger(x) && Math.abs(x) < 1e9) return String(x);
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-4 || size >= 1e7)) return x.toExponential(digits - 1);
    return String(Number(x.toPrecision(digits)));
  };
  bupo.percent = (x, digits = 1) => (typeof x === "number" ? `${(100 * x).toFixed(digits)} %` : "–");
  bupo.range = (n) => Array.from({ length: n }, (_, i) => i);
  bupo.get = (object, path) => path.split(".").reduce((o, key) => (o === null || o === undefined ? undefined : o[key]), object);

  /** Okabe and Ito's colours, told apart by all: those for lines, on light and on dark. */
  const LINES = {
    light: ["#0072b2", "#d55e00", "#009e73", "#b4508c", "#b07a00", "#2f8fc9", "#5c6570", "#7a4fa3"],
    dark: ["#56b4e9", "#ff8a3d", "#2fc79b", "#e39ac4", "#f0c243", "#8fd0ff", "#aab4be", "#b99be0"],
  };
  /** Amounts (viridis), and signed values around zero: both told apart without red and green. */
  bupo.AMOUNT = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
  bupo.SIGNED = ["#08519c", "#3182bd", "#6baed6", "#c6dbef", "#f5f5f0", "#fdd0a2", "#fd8d3c", "#e6550d", "#a63603"];

  bupo.dark = () => document.documentElement.dataset.theme === "dark";
  bupo.colour = (i) => LINES[bupo.dark() ? "dark" : "light"][i % 8];
  bupo.css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** Theme: what the system says, until somebody presses the button. */
  const listeners = [];
  bupo.onTheme = (f) => listeners.push(f);
  const stored = () => { try { return localStorage.getItem("bupo-theme"); } catch { return null; } };
  bupo.setTheme = (theme, keep) => {
    document.documentElement.dataset.theme = theme;
    if (keep) try { localStorage.setItem("bupo-theme", theme); } catch { /* a page from a file may keep nothing */ }
    listeners.forEach((f) => f());
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  bupo.setTheme(stored() ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", (e) => { if (!stored()) bupo.setTheme(e.matches ? "dark" : "light"); });

  /** Gives the reader a file. */
  bupo.save = (name, type, text) => {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = bupo.el("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  /** A table as CSV (RFC 4180). Numbers keep all their digits. */
  bupo.csv = (columns, rows) => {
    const cell = (x) => {
      const text = x === null || x === undefined ? "" : String(x);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  };
  /** The shortest endings of paths that tell them apart. */
  bupo.shorten = (paths) => {
    const parts = paths.map((p) => String(p).split("/").filter(Boolean));
    for (let n = 1; n < 8; n += 1) {
      const short = parts.map((p) => p.slice(-n).join("/"));
      if (new Set(short).size === new Set(paths).size) return short;
    }
    return paths;
  };
  bupo.slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 80) || "data";

  /** A token as it can be seen: spaces and line ends as signs. */
  bupo.token = (text) => (text === "" ? "∅" : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

  /** Tooltips are elements, so that no text becomes markup. `rows`: [colour or null, name, value]. */
  bupo.tip = (title, rows, after) => bupo.el("div", { class: "tip" }, bupo.el("b", {}, title),
    bupo.el("table", {}, rows.map(([colour, name, value]) => {
      const swatch = colour ? bupo.el("span", { class: "swatch" }) : null;
      if (swatch) swatch.style.background = colour;
      return bupo.el("tr", {}, bupo.el("td", {}, swatch, name), bupo.el("td", { class: "number" }, value));
    })), after ?? null);

  /** A part of the page that the list at its side names. */
  bupo.section = (title, lead, ...children) => bupo.el("section", { id: bupo.slug(title) },
    bupo.el("h2", {}, title), lead ? bupo.el("p", { class: "lead" }, lead) : null, children);
  bupo.empty = (...text) => bupo.el("p", { class: "empty" }, text);
  bupo.code = (text) => bupo.el("code", {}, text);
  bupo.tiles = (pairs) => bupo.el("dl", { class: "tiles" }, pairs.filter((p) => p[1] !== null && p[1] !== undefined).map(([name, value, small]) =>
    bupo.el("div", { class: "tile" }, bupo.el("dt", {}, name), bupo.el("dd", {}, value, small ? bupo.el("small", {}, ` ${small}`) : null))));

  /** A choice with a label. `options`: [value, text]. */
  bupo.choose = (label, options, value, change) => {
    const select = bupo.el("select", { "aria-label": label || "what is shown", onchange: () => change(select.value) },
      options.map(([v, text]) => bupo.el("option", { value: v, selected: String(v) === String(value) }, text)));
    return bupo.el("label", { class: "field" }, label, select);
  };
  /** A button that stays pressed. */
  bupo.toggle = (text, on, change) => {
    const button = bupo.el("button", { type: "button", "aria-pressed": String(on), onclick: () => {
      on = !on;
      button.setAttribute("aria-pressed", String(on));
      change(on);
    } }, text);
    return button;
  };

  /** A table; cells are text, numbers or elements. `numeric`: columns that stand right. */
  bupo.table = (columns, rows, numeric = []) => bupo.el("div", { class: "scroll" }, bupo.el("table", {},
    bupo.el("thead", {}, bupo.el("tr", {}, columns.map((c, i) => bupo.el("th", { class: numeric.includes(i) ? "number" : null, scope: "col" }, c)))),
    bupo.el("tbody", {}, rows.map((row) => bupo.el("tr", {}, row.map((c, i) =>
      bupo.el("td", { class: numeric.includes(i) ? "number" : null }, typeof c === "number" ? bupo.show(c) : c ?? "–")))))));

  /** A card that is not a chart but can be saved as CSV too. */
  bupo.tableCard = (title, note, columns, rows, csv, numeric) => bupo.el("div", { class: "card wide" },
    bupo.el("header", {}, bupo.el("h3", {}, title), bupo.el("div", { class: "tools" },
      bupo.el("button", { type: "button", class: "quiet", title: "Save the table as CSV", onclick: () =>
        bupo.save(`${bupo.slug(title)}.csv`, "text/csv", bupo.csv(csv.columns, csv.rows)) }, "CSV"))),
    note ? bupo.el("p", { class: "note" }, note) : null, bupo.table(columns, rows, numeric));
})();
