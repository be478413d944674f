"use strict";
// Volumes drawn by niivue: a canvas with its controls. `medkitViewer.show` is all that other scripts call.
const medkitViewer = (() => {
  const VIEWS = { axial: 0, coronal: 1, sagittal: 2, all: 3, "3D": 4 };
  const MOVES = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
    PageDown: [0, 0, -1], PageUp: [0, 0, 1] };

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "class") element.className = value;
      else if (name.includes("-") || name === "role") element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children);
    return element;
  }

  function bytesOf(text) {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let at = 0; at < bytes.length; at += 1) bytes[at] = characters.charCodeAt(at);
    return bytes;
  }

  /** Run niivue's script, which lies compressed in the page and is allowed by its digest. */
  async function start() {
    const packed = new Blob([bytesOf(JSON.parse(document.getElementById("niivue").textContent).script)]);
    const text = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(make("script", { textContent: text }));
    const drawer = new globalThis.medkitNiivue({ logLevel: "error", loadingText: "", dragAndDropEnabled: false,
      isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: 1,
      multiplanarLayout: 2, crosshairWidth: 0.4, crosshairWidthUnit: "percent", viewModeHotKey: "",
      clipPlaneHotKey: "", isAlphaClipDark: true });
    await drawer.attachToCanvas(canvas);
    drawer.onLocationChange = showPlace;
    return drawer;
  }

  let niivue = null; // once it is asked for, a promise of what draws
  let drawer = null;
  let shown = null; // the volumes on the canvas
  let wanted = null;

  const canvas = make("canvas", { role: "img", tabIndex: 0, "aria-describedby": "viewer-place" });
  const place = make("p", { id: "viewer-place", class: "place" });
  const note = make("p", { class: "dim" });
  const labels = make("ul", { class: "labels", "aria-label": "Labels" });
  const labelBox = make("details", { open: true }, make("summary", {}, "Labels"), labels);
  const view = make("select", {}, ...Object.keys(VIEWS).map((name) => make("option", { value: name },
    name === "all" ? "three planes and 3D" : name)));
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
  const overlay = make("label", {}, "Overlay ", opacity);
  const outlines = make("input", { type: "checkbox", checked: true });
  const outlineBox = make("label", { class: "check" }, outlines, " outlines");
  const [low, high] = [0, 1].map(() => make("input", { type: "number", step: "any" }));
  const box = make("div", { class: "viewer" },
    make("div", { class: "controls" }, make("label", {}, "View ", view), make("label", {}, "Grey from ", low),
      make("label", {}, "to ", high), overlay, outlineBox),
    make("div", { class: "canvas" }, canvas), place, note, labelBox,
    make("p", { class: "dim" }, "The patient's right is on the left (radiological). Click or drag: place; wheel: slice; ",
      "right button: grey window; arrows, PageUp, PageDown: one voxel. Drawn by niivue (BSD-2-Clause)."));

  const figure = (value) => (Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4))));
  const nameOf = (label) => (label.name ? `${label.name} (${label.number})` : `label ${label.number}`);

  function showPlace({ mm, values }) {
    const said = values.map(({ value }, number) => {
      const volume = shown && shown.volumes[number];
      if (!volume) return "";
      if (volume.kind !== "labels") return figure(value);
      const label = volume.labels[Math.round(value) - 1];
      return label ? nameOf(label) : value ? "a label" : "no label";
    });
    const [x, y, z] = Array.from(mm, (value) => (Math.round(value * 10) / 10 || 0).toFixed(1));
    place.textContent = `x ${x}, y ${y}, z ${z} mm (RAS+): ${said.filter(Boolean).join(", ")}`;
  }

  function goTo(millimetres) {
    drawer.scene.crosshairPos = drawer.mm2frac(millimetres);
    drawer.createOnLocationChange();
    drawer.drawScene();
  }

  function showLabels() {
    const volume = shown.volumes.find(({ kind }) => kind === "labels");
    labelBox.hidden = !volume;
    outlineBox.hidden = !volume;
    labels.replaceChildren(...(volume ? volume.labels : []).map((label) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = `rgb(${label.colour})`;
      const button = make("button", { type: "button", disabled: !label.place }, swatch, ` ${nameOf(label)}`);
      button.addEventListener("click", () => goTo(label.place));
      return make("li", {}, button);
    }));
  }

  /** niivue's table of colours: the rank of a label, in the voxels, is its place in each list. */
  function coloursOf(list) {
    const part = (index) => [0, ...list.map(({ colour }) => colour[index])];
    return { R: part(0), G: part(1), B: part(2), A: [0, ...list.map(() => 255)], I: [0, ...list.map((_, n) => n + 1)],
      labels: ["", ...list.map(nameOf)] };
  }

  async function load(item) {
    drawer.volumes = [];
    for (const [number, volume] of item.volumes.entries()) {
      const isLabels = volume.kind === "labels";
      const options = { url: `${number}.nii.gz`, name: `${number}.nii.gz`, buffer: bytesOf(volume.content).buffer,
        opacity: isLabels ? 0.3 : volume.colour === "gray" ? 1 : 0.5 };
      if (!isLabels) Object.assign(options, { colormap: volume.colour, cal_min: volume.low, cal_max: volume.high });
      const added = await drawer.addVolumeFromUrl(options);
      if (isLabels) added.setColormapLabel(coloursOf(volume.labels));
    }
    shown = item;
    view.value = item.view;
    drawer.setSliceType(VIEWS[item.view]);
    [low.value, high.value] = [figure(item.volumes[0].low), figure(item.volumes[0].high)];
    overlay.hidden = item.volumes.length < 2;
    opacity.value = drawer.volumes[drawer.volumes.length - 1].opacity;
    note.textContent = item.note ? `To keep this page small: ${item.note}.` : "";
    note.hidden = !item.note;
    showLabels();
    drawer.setAtlasOutline(outlines.checked ? 1 : 0);
    drawer.scene.crosshairPos = [0.5, 0.5, 0.5];
    drawer.updateGLVolume();
    drawer.createOnLocationChange();
  }

  /** Show volumes in a place of the page; what was asked for last wins. */
  async function show(where, item, name) {
    where.replaceChildren(box);
    box.dataset.state = "loading";
    canvas.setAttribute("aria-label", `Slices of ${name}`);
    place.textContent = "loading ...";
    wanted = item;
    try {
      niivue = niivue || start();
      drawer = await niivue;
      if (wanted !== item) return;
      await load(item);
      if (wanted === item) box.dataset.state = "ready";
    } catch (error) {
      box.dataset.state = "failed";
      place.textContent = `This browser shows no volumes: ${error.message || error}`;
    }
  }

  view.addEventListener("change", () => drawer.setSliceType(VIEWS[view.value]));
  opacity.addEventListener("input", () => drawer.setOpacity(drawer.volumes.length - 1, opacity.valueAsNumber));
  outlines.addEventListener("change", () => drawer.setAtlasOutline(outlines.checked ? 1 : 0));
  for (const field of [low, high]) {
    field.addEventListener("change", () => {
      if (!(low.valueAsNumber < high.valueAsNumber)) return;
      Object.assign(drawer.volumes[0], { cal_min: low.valueAsNumber, cal_max: high.valueAsNumber });
      drawer.updateGLVolume();
    });
  }
  canvas.addEventListener("keydown", (event) => {
    if (MOVES[event.key] && drawer) drawer.moveCrosshairInVox(...MOVES[event.key]);
    else if (event.key === "Tab") return;
    else document.dispatchEvent(new KeyboardEvent("keydown", event)); // keys of the page, rather than those of niivue
    event.preventDefault();
    event.stopImmediatePropagation();
  }, { capture: true });

  return { show };
})();
