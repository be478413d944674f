"use strict";
// The page of `medkit report`: everything is put on the page as text, nothing as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const cases = data.cases;
  const STATES = { failed: "failed", look: "needs a look", ok: "" };
  const TITLES = { volumes_mm3: "volumes (mm³)" };

  /** An element with properties and children; texts become text nodes. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class") element.className = value;
      else if (name.includes("-") || name === "role" || name === "scope" || name === "for") element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  function drawn(tag, attributes, parent) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (parent) parent.append(element);
    return element;
  }

  /** Use what an element of JSON holds that lies behind this script, once the browser has read all of it. */
  function whenRead(id, use) {
    const element = byId(id);
    if (element && (element.nextElementSibling || document.readyState !== "loading")) use(JSON.parse(element.textContent));
    else setTimeout(() => whenRead(id, use), 20);
  }
  const showPicture = (item, image) => whenRead(`picture-${item.number}`, (address) => { image.src = address; });

  const short = (path) => (data.folder && path.startsWith(data.folder) ? path.slice(data.folder.length) : path);
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  function figure(value) {
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  }
  const groupOf = (metric) => (data.metrics[metric].includes(".") ? data.metrics[metric].split(".")[0] : "");
  const nameIn = (metric) => data.metrics[metric].slice(groupOf(metric) ? groupOf(metric).length + 1 : 0);
  const text = (item) => [item.subject, item.task, item.path, item.error, ...item.warnings, ...Object.values(item.answers)].join("\n").toLowerCase();
  cases.forEach((item, number) => Object.assign(item, { number, text: text(item) }));

  // ---- marks, kept by this browser under the digest of what the report shows

  const PLACE = `medkit-report:${data.digest}`;
  const SETTINGS = "medkit-report-settings";
  function kept(place) {
    try {
      return JSON.parse(localStorage.getItem(place)) || {};
    } catch {
      return {};
    }
  }
  function keep(place, value) {
    try {
      localStorage.setItem(place, JSON.stringify(value));
    } catch {
      byId("unsaved").hidden = false;
    }
  }
  const before = kept(PLACE);
  const given = before.marks || {};
  const marks = new Map(cases.map((item) => [item.key, given[item.key] || { mark: item.mark, comment: item.comment }]));
  const settings = { keys: true, advance: false, ...kept(SETTINGS) };
  keep(SETTINGS, settings);

  function save() {
    keep(PLACE, { marks: Object.fromEntries(marks), at: chosen ? chosen.key : null });
  }

  function setMark(mark) {
    if (!chosen) return;
    marks.get(chosen.key).mark = mark;
    save();
    refreshRow(chosen);
    showMark();
    showSummary();
    say(mark ? `${chosen.subject}: ${mark}` : `${chosen.subject}: no mark`);
    if (mark && settings.advance) step(1);
  }

  /** A cell of CSV (RFC 4180). */
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function exportMarks() {
    const rows = [data.columns];
    for (const item of cases) {
      const { mark, comment } = marks.get(item.key);
      if (mark || comment) rows.push([item.path, item.scan, item.stem, item.task, mark, comment]);
    }
    const content = rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
    const address = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
    const link = make("a", { href: address, download: "marks.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    say(`${plural(rows.length - 1, "mark")} exported as marks.csv`);
  }

  // ---- filters and order

  let order = { key: "", down: false };
  let shown = cases.slice();
  let chosen = null;

  function valueOf(item, key) {
    if (key === "state") return ["failed", "look", "ok"].indexOf(item.state) - (item.outliers.length ? 0.5 : 0);
    if (key === "mark") return marks.get(item.key).mark;
    if (key === "subject" || key === "task") return item[key];
    return item.values[key];
  }

  function compare(one, other) {
    const [a, b] = [valueOf(one, order.key), valueOf(other, order.key)];
    const missing = (a === undefined || a === "") - (b === undefined || b === "");
    if (missing) return missing; // last, in both directions
    const found = typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    return order.down ? -found : found;
  }

  function passes(item) {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [task, flag, mark] = ["task", "flags", "marked"].map((id) => byId(id).value);
    const own = marks.get(item.key);
    if (!words.every((word) => item.text.includes(word) || own.comment.toLowerCase().includes(word))) return false;
    if (task && item.task !== task) return false;
    if (flag === "outlier" && !item.outliers.length) return false;
    if (flag === "clean" && (item.state !== "ok" || item.outliers.length)) return false;
    if ((flag === "failed" || flag === "look") && item.state !== flag) return false;
    if (mark === "none" && own.mark) return false;
    if (mark === "comment" && !own.comment) return false;
    if (data.marks.includes(mark) && own.mark !== mark) return false;
    const metric = byId("metric").value;
    if (metric === "") return true;
    const value = item.values[metric];
    const [least, most] = ["least", "most"].map((id) => byId(id).valueAsNumber);
    return value !== undefined && !(value < least) && !(value > most);
  }

  function update() {
    shown = cases.filter(passes);
    showUsualColumns();
    if (order.key !== "") shown.sort(compare);
    showTable();
    if (view === "pictures") showGallery();
    if (view === "metrics") showCharts();
    if (chosen && !shown.includes(chosen) && shown.length) choose(shown[0]);
    else if (chosen) showPlace();
    say(`${shown.length} of ${plural(cases.length, "case")}`);
  }

  const say = (message) => { byId("count").textContent = message; };

  // ---- the table

  let columns = [];
  const rows = new Map();

  const TASKS = [...new Set(cases.map((item) => item.task))];
  const GROUPS = [...new Set(cases.map((item) => item.group))];

  /** The metrics that the table shows if nobody chose others: few, rather single numbers than one of many structures,
   *  and those of the result rather than those of its input. */
  function usualColumns() {
    const task = byId("task").value;
    const found = new Set();
    for (const one of task ? [task] : TASKS) {
      const count = {};
      const members = cases.filter((item) => item.task === one);
      for (const item of members) for (const metric of Object.keys(item.values)) count[metric] = (count[metric] || 0) + 1;
      const own = Object.keys(count).filter((metric) => count[metric] * 2 > members.length);
      const size = {};
      for (const metric of own) size[groupOf(metric)] = (size[groupOf(metric)] || 0) + 1;
      const rank = (metric) => (/\bbefore\b/.test(data.metrics[metric]) ? 2 : size[groupOf(metric)] < 6 || !groupOf(metric) ? 0 : 1);
      own.sort((a, b) => rank(a) - rank(b) || a - b);
      for (const metric of own.slice(0, task || TASKS.length === 1 ? 5 : 1)) found.add(Number(metric));
    }
    const filtered = byId("metric").value;
    if (filtered !== "") found.add(Number(filtered));
    return [...found];
  }

  let ownColumns = false;
  function showUsualColumns() {
    const usual = ownColumns ? columns : usualColumns();
    if (usual.join() === columns.join() && byId("heads").children.length) return;
    columns = usual;
    rows.clear();
    showColumnBoxes();
    showHeads();
  }

  function showHeads() {
    const head = (key, label, number) => {
      const sorted = order.key === key;
      const button = make("button", { type: "button" }, label, sorted ? (order.down ? " ↓" : " ↑") : "");
      button.addEventListener("click", () => {
        order = { key, down: sorted && !order.down };
        showHeads();
        update();
        byId("heads").querySelectorAll("button")[heads.findIndex(([name]) => name === key)].focus();
      });
      const cellOf = make("th", { scope: "col", class: number ? "number" : "" }, button);
      cellOf.setAttribute("aria-sort", sorted ? (order.down ? "descending" : "ascending") : "none");
      return cellOf;
    };
    const heads = [["subject", "Subject"], ["task", "Task"], ["state", "Flags"], ["mark", "Mark"],
      ...columns.map((metric) => [metric, data.metrics[metric], true])];
    byId("heads").replaceChildren(...heads.map((parts) => head(...parts)));
  }

  function flagsOf(item) {
    const found = [];
    if (item.state !== "ok") found.push(make("span", { class: item.state }, STATES[item.state]));
    if (item.outliers.length) {
      found.push(" ", make("span", { class: "far" }, plural(item.outliers.length, "outlier")));
    }
    return found;
  }

  function markOf(item) {
    const { mark, comment } = marks.get(item.key);
    return make("span", { class: mark ? `mark-${mark}` : "dim" }, mark, comment ? " ✎" : "");
  }

  function rowOf(item) {
    if (rows.has(item)) return rows.get(item);
    const cells = columns.map((metric) => {
      const value = item.values[metric];
      const far = item.outliers.includes(metric);
      return make("td", { class: far ? "number far" : "number" }, value === undefined ? "" : figure(value), far ? " !" : "");
    });
    const open = make("button", { type: "button" }, item.subject);
    const row = make("tr", {}, make("th", { scope: "row" }, open), make("td", {}, item.task),
      make("td", { class: "flags" }, ...flagsOf(item)), make("td", {}, markOf(item)), ...cells);
    row.classList.toggle("chosen", item === chosen);
    row.item = item;
    rows.set(item, row);
    return row;
  }

  function refreshRow(item) {
    if (rows.has(item)) rows.get(item).children[3].replaceChildren(markOf(item));
  }

  function showTable() {
    byId("rows").replaceChildren(...shown.map(rowOf));
  }

  function showColumnBoxes() {
    const boxes = data.metrics.map((name, metric) => {
      const box = make("input", { type: "checkbox", checked: columns.includes(metric) });
      box.addEventListener("change", () => {
        ownColumns = true;
        columns = box.checked ? [...columns, metric] : columns.filter((other) => other !== metric);
        rows.clear();
        showHeads();
        showTable();
      });
      return make("label", { class: "check" }, box, name);
    });
    byId("column-boxes").replaceChildren(...boxes);
    byId("columns").hidden = !boxes.length;
  }

  // ---- the card of one case

  function choose(item, { focus = false } = {}) {
    if (chosen && rows.has(chosen)) {
      rows.get(chosen).classList.remove("chosen");
      rows.get(chosen).querySelector("button").removeAttribute("aria-current");
    }
    chosen = item;
    const row = rowOf(item);
    row.classList.add("chosen");
    row.querySelector("button").setAttribute("aria-current", "true");
    showInBox(row);
    showCard();
    save();
    say(`${shown.indexOf(item) + 1} of ${shown.length}: ${item.subject}, ${item.task}${item.state === "ok" ? "" : `, ${STATES[item.state]}`}`);
    if (focus) {
      byId("card").focus({ preventScroll: true });
      byId("card").scrollIntoView({ block: "start" });
    }
  }

  /** Scroll the table, and not the page, so that a row is seen. */
  function showInBox(row) {
    const box = byId("table-box");
    const head = box.querySelector("thead").offsetHeight;
    if (row.offsetTop - head < box.scrollTop) box.scrollTop = row.offsetTop - head;
    const end = row.offsetTop + row.offsetHeight;
    if (end > box.scrollTop + box.clientHeight) box.scrollTop = end - box.clientHeight;
  }

  function step(by) {
    if (!shown.length) return;
    const at = shown.indexOf(chosen);
    const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1);
    choose(shown[next]);
  }

  function showPlace() {
    const place = byId("place");
    if (place) {
      const at = shown.indexOf(chosen);
      place.textContent = at < 0 ? "not in the filtered list" : `${at + 1} of ${shown.length}`;
    }
  }

  function showMark() {
    const { mark } = marks.get(chosen.key);
    for (const button of byId("card").querySelectorAll("[data-mark]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
    }
  }

  function marksBox(item) {
    const buttons = data.marks.map((mark, number) => {
      const button = make("button", { type: "button", "aria-pressed": "false", "aria-keyshortcuts": String(number + 1) },
        `${mark[0].toUpperCase()}${mark.slice(1)} `, make("kbd", {}, String(number + 1)));
      button.dataset.mark = mark;
      button.addEventListener("click", () => setMark(marks.get(item.key).mark === mark ? "" : mark));
      return button;
    });
    const comment = make("textarea", { id: "comment", value: marks.get(item.key).comment, rows: 1, spellcheck: false });
    comment.addEventListener("input", () => {
      marks.get(item.key).comment = comment.value;
      save();
      refreshRow(item);
      showSummary();
    });
    return make("div", { class: "marks" },
      make("div", { class: "group", role: "group", "aria-label": "Mark of this case" }, ...buttons),
      make("label", {}, "Comment (c)", comment));
  }

  function pictureOf(item) {
    if (!item.picture) return make("p", { class: "dim" }, "There is no picture of this case.");
    const image = make("img", { alt: `Slices of ${item.subject}, ${item.task}` });
    showPicture(item, image);
    const button = make("button", { type: "button", class: "picture", id: "picture", "aria-pressed": "false",
      title: "Full size (z)" }, image);
    const box = make("div", {}, button);
    button.addEventListener("click", () => {
      const full = box.classList.toggle("full");
      button.setAttribute("aria-pressed", String(full));
    });
    return box;
  }

  function reasonsOf(item) {
    if (item.error) return make("ul", { class: "reasons error" }, make("li", {}, item.error));
    if (!item.warnings.length) return null;
    return make("ul", { class: "reasons" }, ...item.warnings.map((warning) => make("li", {}, warning)));
  }

  const medians = new Map();
  function valuesOfGroup(group, metric) {
    return cases.filter((item) => item.group === group && item.values[metric] !== undefined).map((item) => item.values[metric]);
  }
  function quantile(sorted, share) {
    const at = (sorted.length - 1) * share;
    const low = Math.floor(at);
    return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  }
  function medianOf(group, metric) {
    const key = `${group}\n${metric}`;
    if (!medians.has(key)) medians.set(key, quantile(valuesOfGroup(group, metric).sort((a, b) => a - b), 0.5));
    return medians.get(key);
  }

  function metricsOf(item) {
    const groups = new Map();
    for (const key of Object.keys(item.values)) {
      const metric = Number(key);
      if (!groups.has(groupOf(metric))) groups.set(groupOf(metric), []);
      groups.get(groupOf(metric)).push(metric);
    }
    const found = [];
    for (const [group, metrics] of groups) {
      const entries = metrics.map((metric) => {
        const far = item.outliers.includes(metric);
        const colour = group === "volumes_mm3" ? data.colours[nameIn(metric)] : undefined;
        const swatch = colour ? make("span", { class: "swatch" }) : null;
        if (swatch) swatch.style.background = colour;
        return make("li", {}, swatch, make("span", { class: "name" }, nameIn(metric)),
          make("span", { class: far ? "far" : "" }, figure(item.values[metric]), far ? " outlier" : ""),
          make("span", { class: "median", title: "median of the group" }, figure(medianOf(item.group, metric))));
      });
      const list = make("ul", { class: "values" }, ...entries);
      const far = metrics.filter((metric) => item.outliers.includes(metric)).length;
      const title = TITLES[group] || group || "of the whole case";
      found.push(make("details", { open: metrics.length < 12 || group === "volumes_mm3" || far > 0 },
        make("summary", {}, title, far ? make("span", { class: "far" }, ` ${plural(far, "outlier")}`) : null), list));
    }
    const answers = Object.entries(item.answers).map(([name, value]) => make("p", {}, `${name}: ${value}`));
    if (!found.length && !answers.length) return null;
    return make("section", {}, make("h3", {}, "Metrics"),
      make("p", { class: "dim" }, "The second number is the median of all cases that were made alike."), ...answers,
      ...found);
  }

  function treeOf(path, above) {
    const facts = data.files[path] || { kind: "file" };
    const entry = make("li", {}, make("span", {}, short(path)),
      make("span", { class: "dim" }, `  ${facts.kind}${facts.missing ? ", missing" : ""}`));
    if (facts.command) entry.append(make("code", {}, facts.command));
    const words = [facts.programs, facts.bundle && `bundle ${facts.bundle}`, facts.device,
      facts.seconds !== undefined && `${figure(facts.seconds)} s`].filter(Boolean).join(", ");
    if (words) entry.append(make("div", { class: "dim" }, words));
    const settings = Object.entries(facts.arguments || {}).map(([name, value]) => `${name}: ${value}`).join(", ");
    if (settings) entry.append(make("div", { class: "dim" }, `arguments: ${settings}`));
    for (const warning of facts.warnings || []) {
      entry.append(make("div", { class: facts.look ? "look" : "" }, `warning: ${warning}`));
    }
    const sources = (facts.sources || []).filter((source) => !above.includes(source));
    if (sources.length) entry.append(make("ul", {}, ...sources.map((source) => treeOf(source, [...above, path]))));
    return entry;
  }

  function showCard() {
    const item = chosen;
    const moves = [["Previous", "k", -1], ["Next", "j", 1]].map(([label, key, by]) => {
      const button = make("button", { type: "button", "aria-keyshortcuts": key }, `${label} `, make("kbd", {}, key));
      button.addEventListener("click", () => step(by));
      return button;
    });
    const description = (data.files[item.file] || {}).description;
    byId("card").replaceChildren(
      make("div", { class: "top" },
        make("h2", { id: "card-name" }, `${item.subject} · ${item.task} `, ...flagsOf(item)),
        make("div", { class: "steps" }, ...moves, make("span", { id: "place", class: "dim" }))),
      make("p", { class: "path" }, short(item.path), description ? ` — ${description}` : ""),
      marksBox(item),
      ...[reasonsOf(item), pictureOf(item)].filter(Boolean),
      make("div", { id: "viewer" }),
      ...[metricsOf(item)].filter(Boolean),
      make("section", {}, make("h3", {}, "Where it comes from"), make("ul", { class: "tree" }, treeOf(item.file, []))),
    );
    showMark();
    showPlace();
    if (data.viewer) showViewer();
  }

  // ---- the viewer, if the page has one

  let viewing = false;

  function showViewer() {
    const place = byId("viewer");
    if (!chosen.volumes) {
      place.append(make("p", { class: "dim" }, "This page holds no volumes of this case."));
      return;
    }
    const button = make("button", { type: "button", "aria-pressed": String(viewing), "aria-keyshortcuts": "v", id: "view" },
      "Volumes in the viewer ", make("kbd", {}, "v"));
    const box = make("div");
    const item = chosen;
    const load = () => volumesOf(item).then(
      (volumes) => viewing && item === chosen && medkitViewer.show(box, volumes, `${item.subject}, ${item.task}`),
      (error) => box.replaceChildren(make("p", { class: "failed" }, error.message)));
    button.addEventListener("click", () => {
      viewing = !viewing;
      button.setAttribute("aria-pressed", String(viewing));
      if (viewing) load().then(() => place.scrollIntoView({ block: "nearest" }));
      else box.replaceChildren();
    });
    place.append(button, box);
    if (viewing) load();
  }

  /** A promise of the volumes of a case, which lie in the page or in a document next to it. */
  function volumesOf(item) {
    return new Promise((resolve, reject) => {
      whenRead(`volumes-${item.number}`, (found) => {
        if (typeof found === "string") askFrame(found).then(resolve, reject);
        else resolve(found);
      });
    });
  }

  /** Get what a document next to the page holds: browsers let pages of a disk load others in frames only. */
  function askFrame(address) {
    return new Promise((resolve, reject) => {
      const frame = make("iframe", { src: address, hidden: true, sandbox: "allow-scripts", title: "volumes" });
      const end = () => {
        removeEventListener("message", hear);
        frame.remove();
      };
      const hear = (event) => {
        if (event.source !== frame.contentWindow) return;
        end();
        resolve(event.data);
      };
      addEventListener("message", hear);
      frame.addEventListener("load", () => setTimeout(() => {
        if (!frame.isConnected) return;
        end();
        reject(new Error(`${address} is missing: the folder belongs next to this page.`));
      }, 2000));
      document.body.append(frame);
    });
  }

  // ---- pictures of all cases

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      showPicture(target.item, target);
      watcher.unobserve(target);
    }
  }, { rootMargin: "400px" });

  function showGallery() {
    const tiles = shown.map((item) => {
      const image = item.picture ? make("img", { alt: "" }) : make("span", { class: "dim" }, "no picture");
      image.item = item;
      if (item.picture) watcher.observe(image);
      const button = make("button", { type: "button" }, image,
        make("span", { class: "name" }, `${item.subject} · ${item.task} `, ...flagsOf(item), " ", markOf(item)));
      button.addEventListener("click", () => open(item));
      return button;
    });
    byId("gallery").replaceChildren(...tiles);
  }

  // ---- distributions

  function chartOf(group, metric) {
    const members = cases.filter((item) => item.group === group && item.values[metric] !== undefined);
    const far = members.filter((item) => item.outliers.includes(metric));
    const sorted = members.map((item) => item.values[metric]).sort((a, b) => a - b);
    const [low, high] = [sorted[0], sorted[sorted.length - 1]];
    const across = (value) => (high > low ? 8 + (284 * (value - low)) / (high - low) : 150);
    const svg = drawn("svg", { viewBox: "0 0 300 62", "aria-hidden": "true" });
    const [left, middle, right] = [0.25, 0.5, 0.75].map((share) => across(quantile(sorted, share)));
    drawn("rect", { class: "box", x: left, y: 40, width: Math.max(1, right - left), height: 12 }, svg);
    drawn("line", { class: "median", x1: middle, x2: middle, y1: 38, y2: 54 }, svg);
    const heights = new Map();
    let path = "";
    for (const item of members) {
      const x = across(item.values[metric]);
      const column = Math.round(x / 6);
      const level = heights.get(column) || 0;
      heights.set(column, level + 1);
      const y = 32 - Math.min(level, 9) * 3;
      if (far.includes(item)) {
        const dot = drawn("circle", { class: "far", cx: x, cy: y, r: 4.5 }, svg);
        dot.addEventListener("click", () => open(item));
        drawn("title", {}, dot).textContent = item.subject;
      } else {
        path += `M${(x - 3).toFixed(1)} ${y}a3 3 0 1 0 6 0a3 3 0 1 0-6 0`;
      }
      if (item === chosen) drawn("circle", { class: "here", cx: x, cy: y, r: 6 }, svg);
    }
    drawn("path", { class: "dots", d: path }, svg);
    const names = far.map((item) => {
      const value = item.values[metric];
      const button = make("button", { type: "button" }, `${item.subject}: ${figure(value)}`);
      button.addEventListener("click", () => open(item));
      return button;
    });
    return make("figure", {},
      make("figcaption", {}, data.metrics[metric], GROUPS.length > 1 ? make("span", { class: "dim" }, `  ${group}`) : null),
      svg,
      make("div", { class: "ends" }, make("span", {}, figure(low)),
        make("span", {}, `median ${figure(quantile(sorted, 0.5))}, n ${sorted.length}`), make("span", {}, figure(high))),
      names.length ? make("div", { class: "names" }, ...names) : null);
  }

  function showCharts() {
    const wanted = byId("task").value;
    const word = byId("metric-search").value.toLowerCase();
    const charts = [];
    for (const group of GROUPS) {
      const members = cases.filter((item) => item.group === group);
      if (wanted && members[0].task !== wanted) continue;
      data.metrics.forEach((name, metric) => {
        const far = members.filter((item) => item.outliers.includes(metric)).length;
        if (!name.toLowerCase().includes(word) || (byId("only-far").checked && !far)) return;
        if (members.filter((item) => item.values[metric] !== undefined).length >= 3) charts.push([far, charts.length, group, metric]);
      });
    }
    charts.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    byId("charts").replaceChildren(...charts.map(([, , group, metric]) => chartOf(group, metric)));
    if (!charts.length) byId("charts").replaceChildren(make("p", { class: "dim" }, "No metric fits that three cases or more have."));
  }

  // ---- views, summary, keys

  let view = "cases";
  function show(name) {
    view = name;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === name));
      byId(`view-${button.dataset.view}`).hidden = button.dataset.view !== name;
    }
    if (name === "pictures") showGallery();
    if (name === "metrics") showCharts();
  }
  function open(item) {
    if (!shown.includes(item)) byId("filters").reset();
    show("cases");
    choose(item, { focus: true });
  }

  function showSummary() {
    const count = (test) => cases.filter(test).length;
    const marked = count((item) => marks.get(item.key).mark);
    byId("summary").textContent = [plural(cases.length, "case"), `${count((item) => item.state === "failed")} failed`,
      `${count((item) => item.state === "look")} to look at`, `${count((item) => item.outliers.length)} with outliers`,
      `${marked} marked`].join(", ");
    byId("export").disabled = !count((item) => marks.get(item.key).mark || marks.get(item.key).comment);
  }

  const KEYS = {
    j: () => step(1),
    k: () => step(-1),
    0: () => setMark(""),
    c: () => byId("comment") && byId("comment").focus(),
    z: () => byId("picture") && byId("picture").click(),
    v: () => byId("view") && byId("view").click(),
    "/": () => byId("search").focus(),
    "?": () => byId("help").showModal(),
  };
  data.marks.forEach((mark, number) => { KEYS[number + 1] = () => setMark(mark); });

  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox";
    if (typing && event.key === "Escape") {
      event.preventDefault(); // some browsers empty a search field
      event.target.blur();
    }
    if (typing || byId("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!settings.keys || !Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    if (view !== "cases" && "jk".includes(event.key)) show("cases");
    KEYS[event.key]();
  });

  function fill() {
    byId("title").textContent = document.title;
    byId("made").textContent = `Made by medkit ${data.version} on ${data.made}. Report ${data.digest.slice(0, 12)}.`;
    const option = (label, value) => make("option", { value }, label);
    byId("task").append(option("all", ""), ...TASKS.map((task) => option(task, task)));
    byId("marked").append(...data.marks.map((mark) => option(mark, mark)), option("with a comment", "comment"));
    byId("metric").append(option("any", ""), ...data.metrics.map((name, metric) => option(name, metric)));
    for (const name of ["keys", "advance"]) {
      byId(name).checked = settings[name];
      byId(name).addEventListener("change", () => {
        settings[name] = byId(name).checked;
        keep(SETTINGS, settings);
      });
    }
    byId("volumes-key").hidden = byId("licences").hidden = !data.viewer;
    if (data.viewer) whenRead("niivue", ({ licence }) => { byId("licence").textContent = licence; });
    byId("more").open = !matchMedia("(max-width: 520px)").matches;
    byId("filters").addEventListener("input", update);
    byId("filters").addEventListener("reset", () => setTimeout(update)); // once the fields are empty
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("metric-search").addEventListener("input", showCharts);
    byId("only-far").addEventListener("change", showCharts);
    byId("export").addEventListener("click", exportMarks);
    byId("help-open").addEventListener("click", () => byId("help").showModal());
    byId("rows").addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row) choose(row.item, { focus: matchMedia("(max-width: 900px)").matches });
    });
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => show(button.dataset.view));
    }
    showSummary();
    update();
    const last = cases.find((item) => item.key === before.at);
    if (cases.length) choose(last || cases[0]);
  }
  fill();
})();
